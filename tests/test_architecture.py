"""What docs/architecture.md says and the source shows: layers, Ray at the edge, light jobs, portable files."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent

# A module or subpackage of raychat imports from lines above its own, or from its own line without cycles.
LAYERS = [
    "paths disk dist device log transcript recipe settings actors lease provenance intervals",
    "tokenizer huggingface chat model",
    "optim tasks tinyworld",
    "data checkpoint engine",
    "runs evals train serve report interchange",
    "rl lab",
    "cluster",
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
# More than one class may have these names: every job's settings.
TWICE = {"Args"}
MAX_FILE, MAX_FUNCTION = 300, 60  # lines
LONGER = {  # path or path:function -> why it is longer
    "raychat/data/packing.py:best_fit": "one loop, and a docstring with examples",
    "raychat/train/scaling.py:from_depth": "half of it is its docstring",
    "jobs/tok_train.py:run": "a job is read from top to bottom",
}
JOBS = sorted(path.stem for path in (REPO / "jobs").glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything a file imports, wherever in the file (`from a import b` gives `a.b`)."""
    package = path.relative_to(REPO).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def sources(folder: str) -> list[Path]:
    return sorted((REPO / folder).rglob("*.py"))


def part(path: Path) -> str:
    """Return the module or subpackage directly under raychat/ that a file belongs to; "" for raychat/__init__.py."""
    name = path.relative_to(REPO / "raychat").parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def raychat_imports() -> dict[str, set[str]]:
    """Map each part of raychat to the other parts it imports."""
    graph: dict[str, set[str]] = {}
    for path in sources("raychat"):
        names = (name.split(".") for name in imports(path))
        found = {name[1] for name in names if name[0] == "raychat" and len(name) > 1}
        graph.setdefault(part(path), set()).update(found - {part(path), "__version__"})
    return graph


def test_every_module_has_a_layer() -> None:
    unknown = set(raychat_imports()) - set(LAYER) - {""}
    assert not unknown, f"add {sorted(unknown)} to LAYERS, and to the picture in docs/architecture.md"


def test_imports_point_down() -> None:
    graph = raychat_imports()
    up = [f"{a} -> {b}" for a, found in graph.items() for b in found if LAYER.get(b, 99) > LAYER.get(a, -1)]
    assert not up, f"imports that point up: {up}"


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(raychat_imports()).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' -> '.join(error.args[1])}")


def module(path: Path) -> str:
    """Return the dotted name of a file; a package's is that of its __init__.py."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def test_single_modules_have_no_cycle() -> None:
    modules = {module(path): path for path in sources("raychat")}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        # `from a import b` means the module a.b where there is one, else a name in a
        found = {full if full in modules else full.rpartition(".")[0] for full in imports(path)}
        graph[name] = (found & modules.keys()) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", sources("raychat/cluster"), ids=lambda p: p.name)
def test_every_module_of_cluster_imports_ray(path: Path) -> None:
    """What does not, works without Ray and belongs beside what it works on. An import in a function counts."""
    assert [name for name in imports(path) if name.split(".")[0] == "ray"]


def test_files_and_functions_are_short() -> None:
    lengths: dict[str, int] = {}
    for path in sources("raychat") + sources("jobs"):
        text, name = path.read_text(), str(path.relative_to(REPO))
        if (lines := len(text.splitlines())) > MAX_FILE:
            lengths[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    lengths[f"{name}:{node.name}"] = lines
    assert not {name: lines for name, lines in lengths.items() if name not in LONGER}
    assert not LONGER.keys() - lengths.keys(), "exceptions that are short by now"


def test_class_names_are_used_once() -> None:
    places: dict[str, list[str]] = {}
    for path in sources("raychat"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(REPO)))
    assert not {name: found for name, found in places.items() if len(found) > 1 and name not in TWICE}
    assert not TWICE - {name for name, found in places.items() if len(found) > 1} - {"Args"}, "exceptions without need"


FOLDERS = sorted({path.parent for path in sources("raychat") + sources("jobs")})


def lines_of(folder: Path) -> list[str]:
    """Return the lines of README's file tree that speak of a folder: those that name it, and what is indented below."""
    lines = (REPO / "README.md").read_text().partition("## Files")[2].split("```")[1].splitlines()
    for name in folder.relative_to(REPO).parts:
        found: list[str] = []
        inside: int | None = None  # indentation of the line that named the folder
        for line in lines:
            indent = len(line) - len(line.lstrip())
            if inside is not None and indent <= inside:
                inside = None
            if inside is None and re.search(rf"(?<![\w/]){name}/", line):
                inside = indent
            if inside is not None:
                found.append(line)
        lines = found
    return lines


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_readme_names_every_file(folder: Path) -> None:
    tree = "\n".join(lines_of(folder))
    stems = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    missing = [stem for stem in stems if not re.search(rf"(?<![\w.]){stem}(\.py)?(?![\w/])", tree)]
    assert not missing, f"README's tree does not name these files of {folder.relative_to(REPO)}/: {missing}"


@pytest.mark.parametrize("path", sources("raychat") + sources("jobs"), ids=lambda p: str(p.relative_to(REPO)))
def test_ray_is_imported_in_cluster_only(path: Path) -> None:
    if "cluster" not in path.relative_to(REPO).parts[:-1]:
        assert not [name for name in imports(path) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("speedrun", "miniseries")])
def test_only_jobs_of_jobs_import_jobs(job: str) -> None:
    assert not [name for name in imports(REPO / "jobs" / f"{job}.py") if name.split(".")[0] == "jobs"]


def test_library_does_not_import_jobs() -> None:
    assert not [str(p) for p in sources("raychat") if any(name.split(".")[0] == "jobs" for name in imports(p))]


@pytest.mark.parametrize(
    "path", [*sources("jobs"), REPO / "raychat/cluster/__init__.py"], ids=lambda p: p.parent.name + "/" + p.name
)
def test_every_setting_has_a_help_text(path: Path) -> None:
    """The help text is the comment that ends a setting's line; tyro does not find it when the line was wrapped."""
    text = path.read_text()
    lines = text.splitlines()
    missing = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef) or node.name not in ("Args", "Cluster"):
            continue
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id != "cluster":
                above = lines[field.lineno - 2].strip().startswith("#")
                at_the_end = field.lineno == field.end_lineno and "  # " in lines[field.lineno - 1]
                if not (above or at_the_end):
                    missing.append(field.target.id)
    assert not missing, f"settings without a comment on their own line: {missing}"


@pytest.mark.parametrize("job", JOBS)
def test_job_shows_help_in_three_seconds(job: str) -> None:
    """Its processor time is looked at, with room to spare: the wall clock also runs for other processes."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(
            [sys.executable, f"jobs/{job}.py", "--help"], cwd=REPO, capture_output=True, text=True, timeout=100
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shown.returncode == 0, shown.stderr
        assert "usage" in shown.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    timings: list[float] = []
    while len(timings) < 3 and min(timings, default=99) >= 2:  # cores that are shared also run slower
        timings.append(seconds())
    assert min(timings) < 2, f"--help took {timings} s of processor; import torch, ray and the like inside run()"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := REPO / name).is_file()]


def test_no_lock_files() -> None:
    """A lock file names the index of the machine that wrote it; constraints.txt holds versions only."""
    locks = [str(path) for path in tracked_files() if re.search(r"(\.lock|lock\.json|lock\.yaml)$", path.name)]
    assert not locks


def test_files_name_no_index_and_no_machine() -> None:
    """The checkout installs and runs wherever it lies, from whichever package index the machine is set up for."""
    pattern = re.compile(
        r"index[-_]url|find[-_]links|pypi\.org|pythonhosted|download\.pytorch\.org|static\.crates\.io"
        r"|/work/|/root/|/home/\w|/Users/\w"
    )
    found = []
    for path in tracked_files():
        if path == Path(__file__) or path.suffix in {".png", ".gz", ".zst", ".parquet"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(REPO)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_only_the_corpus_registry_and_jobs_know_tinyworld() -> None:
    users = [p for p in sources("raychat") if any(name.startswith("raychat.tinyworld") for name in imports(p))]
    outside = {str(path.relative_to(REPO)) for path in users if "tinyworld" not in path.parts}
    assert outside == {"raychat/data/corpus.py"}

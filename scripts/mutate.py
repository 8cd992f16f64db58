"""Change the library one small thing at a time and see which changes no test notices.

    python scripts/mutate.py raychat/model/gpt.py --tests tests/test_model_gpt.py --num 20

Each mutant differs from FILE in one comparison, operator, number, condition, call of min or max, or missing statement.
The tests run on a temporary copy of the tree, one process at a time. A mutant that passes them is printed with its line:
it is either equal in effect to the original, or a line that can be wrong without a failing test. Write that test.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
SWAPPED = {"min": "max", "max": "min", "sin": "cos", "cos": "sin", "zeros": "ones", "ones": "zeros"}


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield (attribute, new value) for every small change of a node."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        if new := OPERATORS.get(type(node.op)):
            yield "op", new()
    elif isinstance(node, ast.Compare):
        yield "ops", [OPERATORS[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "value", node.value + 1 if isinstance(node.value, int) else node.value * 1.5 or 0.5
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "value", not node.value
    elif isinstance(node, ast.Name | ast.Attribute):
        key = "id" if isinstance(node, ast.Name) else "attr"
        if getattr(node, key) in SWAPPED:
            yield key, SWAPPED[getattr(node, key)]
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "test", ast.UnaryOp(ast.Not(), node.test)
    for key, value in ast.iter_fields(node):
        for i, part in enumerate(value if isinstance(value, list) else []):
            droppable = ast.Assign | ast.AugAssign | ast.Raise | ast.Expr
            text = isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)  # a docstring
            if isinstance(part, droppable) and not text:
                yield key, [*value[:i], ast.copy_location(ast.Pass(), part), *value[i + 1 :]]


def mutants(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, changed source)."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for key, value in changes(node):
            changed = copy.deepcopy(tree)
            setattr(list(ast.walk(changed))[number], key, value)
            dropped = [part for part in value if isinstance(part, ast.Pass)] if isinstance(value, list) else []
            yield (dropped or [node])[-1].lineno, ast.unparse(ast.fix_missing_locations(changed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="below raychat/")
    parser.add_argument("--tests", nargs="+", required=True, help="the test files that cover it")
    parser.add_argument("--num", type=int, default=20, help="mutants, drawn from all of the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds; a mutant that takes longer is killed")
    args = parser.parse_args()
    os.nice(10)
    source = (REPO / args.file).read_text()
    original = ast.unparse(ast.parse(source)).splitlines()
    found = list(mutants(source))
    drawn = random.Random(args.seed).sample(found, min(args.num, len(found)))
    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raychat", "jobs", "tests"):
            shutil.copytree(REPO / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPO / "pyproject.toml", folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *args.tests]

        def passes() -> bool:
            environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
            try:
                return not subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, timeout=args.timeout
                ).returncode
            except subprocess.TimeoutExpired:
                return False

        if not passes():
            sys.exit(f"{' '.join(command)} fails or takes longer than {args.timeout:.0f} s without any change")
        for line, changed in drawn:
            Path(folder, args.file).write_text(changed)
            if not passes():
                killed += 1
                continue
            now = next(
                new for new, old in zip([*changed.splitlines(), ""], [*original, ""], strict=False) if new != old
            )
            print(f"{args.file}:{line}: {source.splitlines()[line - 1].strip()}\n    {now.strip()}", flush=True)
    print(f"{args.file}: killed {killed} of {len(drawn)}")


if __name__ == "__main__":
    main()

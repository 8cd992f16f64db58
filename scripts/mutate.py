"""Change the library one small thing at a time and see which changes no test notices.

    python scripts/mutate.py raychat/model/gpt.py --tests tests/test_model_gpt.py --num 20

A mutant differs from FILE in one comparison, operator, number, condition, call of min or max, or missing statement.
The tests run on a temporary copy of the tree, one mutant at a time. A mutant that passes is printed with its line: it
is either equal in effect to the original, or a line that can be wrong without a failing test. Write that test.
"""

import argparse
import ast
import contextlib
import copy
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # slow to import: once here, for all the processes forked below

REPO = Path(__file__).resolve().parent.parent
PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Mod, ast.FloorDiv), (ast.BitAnd, ast.BitOr), (ast.And, ast.Or)]
PAIRS += [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
OTHER = {a: b for pair in [*PAIRS, ("min", "max"), ("cos", "sin")] for a, b in (pair, pair[::-1])} | {ast.Pow: ast.Mult}


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield (attribute, new value) for every small change of a node."""
    name = "id" if isinstance(node, ast.Name) else "attr"
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OTHER:
        yield "op", OTHER[type(node.op)]()
    elif isinstance(node, ast.Compare):
        yield "ops", [OTHER[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        new = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: 1.5 * x or 0.5}
        yield "value", new[type(node.value)](node.value)
    elif isinstance(node, ast.Name | ast.Attribute) and getattr(node, name) in OTHER:
        yield name, OTHER[getattr(node, name)]
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "test", ast.UnaryOp(ast.Not(), node.test)
    for block in ("body", "orelse"):
        lines = getattr(node, block, None)
        for i, line in enumerate(lines if isinstance(lines, list) else []):
            text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
            if isinstance(line, ast.Assign | ast.AugAssign | ast.Raise | ast.Expr) and not text:
                yield block, [*lines[:i], ast.copy_location(ast.Pass(), line), *lines[i + 1 :]]


def mutants(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, changed source)."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for key, value in changes(node):
            changed = copy.deepcopy(tree)
            setattr(list(ast.walk(changed))[number], key, value)
            dropped = [part for part in value if isinstance(part, ast.Pass)] if isinstance(value, list) else []
            yield (dropped or [node])[-1].lineno, ast.unparse(ast.fix_missing_locations(changed))


def run_tests(folder: str, tests: list[str]) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = sys.path[0] = folder
    sys.dont_write_bytecode = True
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def passes(folder: str, tests: list[str], timeout_s: float) -> bool:
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests))
    process.start()
    process.join(timeout_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
    process.join()
    return process.exitcode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="below raychat/")
    parser.add_argument("--tests", nargs="+", required=True, help="the test files that cover it")
    parser.add_argument("--num", type=int, default=20, help="mutants, drawn from all of the file's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=200.0, help="a mutant that takes longer counts as killed")
    args = parser.parse_args()
    os.nice(10)
    torch.set_num_threads(1)
    source = (REPO / args.file).read_text()
    found = list(mutants(source))
    drawn = random.Random(args.seed).sample(found, min(args.num, len(found)))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raychat", "jobs", "tests", "pyproject.toml"):
            (shutil.copytree if (REPO / name).is_dir() else shutil.copy)(REPO / name, Path(folder, name))
        if not passes(folder, args.tests, args.timeout_s):
            sys.exit(f"{' '.join(args.tests)} fails or takes longer than {args.timeout_s} s without any change")
        for line, changed in drawn:
            Path(folder, args.file).write_text(changed)
            if passes(folder, args.tests, args.timeout_s):
                survivors += 1
                pairs = zip(changed.splitlines(), ast.unparse(ast.parse(source)).splitlines(), strict=False)
                now = next((new.strip() for new, old in pairs if new != old), "")
                print(f"{args.file}:{line}: {source.splitlines()[line - 1].strip()}\n    now {now}", flush=True)
    print(f"{args.file}: killed {len(drawn) - survivors} of {len(drawn)}")


if __name__ == "__main__":
    main()

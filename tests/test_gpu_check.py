"""The check of a GPU runs to its end on a CPU, with PyTorch, numpy and pytest alone, and ends when its time is over."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

ALONE = """
import re
from functools import partial
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def needed(names, found):
    for name in names:
        name = re.match(r"[\\w.-]+", name)[0].lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                needed([n for n in requires(name) or () if "extra ==" not in n], found)
            except PackageNotFoundError:
                pass
    return found

there = needed(["torch", "numpy", "pytest"], {"raychat"})
absent = {module for module, names in packages_distributions().items()
          if not there & {name.lower().replace("_", "-") for name in names}}

def find(usual, name, *rest):
    return None if name.split(".")[0] in absent else usual(name, *rest)

PathFinder.find_spec = partial(find, PathFinder.find_spec)  # pytest takes it over as it is
"""
TOY = "--depths 1 2 --batches 1 3 --seconds 0.1 --sequence-len 64 --vocab-size 512"


def check(folder: Path, *options: str) -> Any:
    """Run the check where only PyTorch, numpy, pytest and what they need can be imported; return its result."""
    (folder / "sitecustomize.py").write_text(ALONE)  # Python imports it first, also in the processes that it starts
    environment = os.environ | {"PYTHONPATH": f"{folder}:{REPO}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "benchmarks/gpu.py", *TOY.split(), *options]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sitecustomize" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_check_needs_nothing_but_pytorch_numpy_and_pytest(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert result["tests"] == 0
    assert set(result["train"]) == {"d1", "d2"}
    assert all(figures["tok_s"] > 0 for figures in result["train"].values())
    assert set(result["decode"]["d1"]) == {"1", "3"}
    assert result["fp8"] == {"d1": None, "d2": None}
    assert result["skipped"] == []


def test_what_does_not_fit_into_the_time_is_skipped(tmp_path: Path) -> None:
    result = check(tmp_path, "--no-tests", "--minutes", "1e-4")
    assert result["skipped"] == ["train.d1", "fp8.d1", "decode.d1.1", "decode.d1.3", "train.d2", "fp8.d2"]
    assert (result["tests"], result["train"]) == (None, {})

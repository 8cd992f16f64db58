"""The check of a GPU runs to its end on a CPU, without Ray and without the crate."""

import json
import subprocess
import sys

from conftest import REPO

BARE = """
import runpy, sys
sys.modules["ray"] = sys.modules["raychat_bpe"] = None  # importing them fails
sys.argv = ["gpu.py", "--no-tests", "--depths", "1", "2", "--batches", "1", "3", "--seconds", "0.1"]
sys.argv += ["--sequence-len", "64", "--vocab-size", "512"]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def test_the_check_needs_neither_ray_nor_the_crate() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["train"]) == {"d1", "d2"}
    assert all(figures["tok_s"] > 0 for figures in result["train"].values())
    assert set(result["decode"]["d1"]) == {"1", "3"}
    assert result["fp8"] == {"d1": None, "d2": None}

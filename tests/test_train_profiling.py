"""The trace of a few steps of a stage."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import toy

from raychat import paths
from raychat.train.profiling import traced
from raychat.train.run import run_stage


def test_stage_writes_a_trace_of_its_sixth_to_eighth_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = toy.token_stage(tmp_path, "one", replace(toy.RUNTIME, profile=True))
    run_stage(one, lambda row: None)
    file = Path(one.folder, "trace.json.gz")
    assert f"trace of 3 steps: {file}" in capsys.readouterr().out
    names = [event.get("name", "") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    assert sorted({name for name in names if name.startswith("ProfilerStep")}) == [
        "ProfilerStep#5",
        "ProfilerStep#6",
        "ProfilerStep#7",
    ]
    assert "aten::mm" in names


def test_without_being_asked_no_trace_is_written(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    run_stage(one, lambda row: None)
    assert "trace.json.gz" not in paths.names(one.folder)


def test_a_stage_that_ends_too_early_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with traced(str(tmp_path / "trace.json.gz")) as record:
        for _ in range(5):
            record()
    assert "no trace: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

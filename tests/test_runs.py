"""Checkpoints found where runs write them, and by the ids that people type."""

import os
from pathlib import Path

import pytest

from raychat import paths
from raychat.runs import checkpoint_named, every_checkpoint, find_checkpoint


def write_step(storage: Path, name: str, age_s: int = 0) -> str:
    path = str(storage / "runs" / name)
    paths.write_json(paths.join(path, paths.LAST_FILE), {})
    os.utime(paths.join(path, paths.LAST_FILE), (1e9 - age_s, 1e9 - age_s))
    return path


def test_finds_the_newest_run_and_its_latest_stage(tmp_path: Path) -> None:
    write_step(tmp_path, "old/rl/step_000900", age_s=50)
    write_step(tmp_path, "new/mid/step_000500", age_s=30)
    write_step(tmp_path, "new/sft/step_000007", age_s=20)
    newest = write_step(tmp_path, "new/sft/step_000010", age_s=10)
    write_step(tmp_path, "base_only/base/step_000010")
    found = find_checkpoint(str(tmp_path))
    assert (found.run, found.stage, found.path) == ("new", "sft", newest)
    assert (found.name, found.id, found.step, found.latest) == ("new-sft", "new-sft", 10, True)
    assert find_checkpoint(str(tmp_path), stage="rl").run == "old"
    assert find_checkpoint(str(tmp_path), stage="base").run == "base_only"
    assert find_checkpoint(str(tmp_path), "new", "mid").path.endswith("new/mid/step_000500")


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make speedrun-tiny"):
        find_checkpoint(str(tmp_path))
    write_step(tmp_path, "a/mid/step_000001")
    with pytest.raises(ValueError, match=r"runs that have one: a\b"):
        find_checkpoint(str(tmp_path), "b")
    with pytest.raises(ValueError, match="of the stage rl"):
        find_checkpoint(str(tmp_path), "a", "rl")
    with pytest.raises(ValueError, match="expected one of base, mid, sft, rl"):
        find_checkpoint(str(tmp_path), "a", "pretrain")


def test_every_checkpoint_is_listed_by_run_stage_and_step(tmp_path: Path) -> None:
    for name in ("b/sft/step_000200", "b/sft/step_001000", "b/base/step_000100", "a-1/rl/step_000020"):
        write_step(tmp_path, name)
    (tmp_path / "runs" / "b" / "sft" / "step_002000").mkdir()  # not complete yet
    ids = [found.id for found in every_checkpoint(str(tmp_path))]
    assert ids == ["a-1-rl", "b-base", "b-sft", "b-sft@200"]
    assert [found.step for found in every_checkpoint(str(tmp_path), "b")] == [100, 1000, 200]
    assert every_checkpoint(str(tmp_path), "c") == []


def test_checkpoint_is_found_by_every_id_it_has(tmp_path: Path) -> None:
    older = write_step(tmp_path, "a-1/sft/step_000200")
    newer = write_step(tmp_path, "a-1/sft/step_001000")
    for id, path in (("a-1-sft", newer), ("a-1-sft@1000", newer), ("a-1-sft@200", older)):
        found = checkpoint_named(str(tmp_path), id)
        assert found is not None
        assert (found.path, found.latest) == (path, path == newer)


UNKNOWN = ["", "a", "a-sft", "a-1-rl", "a-1-sft@", "a-1-sft@300", "a-1-sft@x", "../runs/a-1-sft", "..-sft", "a-1-hi"]


@pytest.mark.parametrize("id", UNKNOWN)
def test_unknown_id_is_none(tmp_path: Path, id: str) -> None:
    write_step(tmp_path, "a-1/sft/step_000200")
    write_step(tmp_path, "../sft/step_000200")  # beside the runs
    assert checkpoint_named(str(tmp_path), id) is None

"""A stage around the loop: killed anywhere, it goes on to the same weights; what it writes is complete."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from raychat import checkpoint, paths
from raychat.log import read_metrics
from raychat.train import stage
from raychat.train.token_stage import train_on_rows


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def report(row: dict[str, Any]) -> None:
        if row["step"] >= step:
            raise Killed

    return report


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_LOG_EVERY_S", 0.0)


def weights(folder: str) -> dict[str, torch.Tensor]:
    path = checkpoint.latest(folder)
    assert path is not None
    assert paths.name(path) == f"step_{toy.STEPS:06d}"
    return checkpoint.load_model(path, torch.device("cpu"))[0].state_dict()


@pytest.mark.parametrize("killed_at", [1, 4, 7])  # before the first checkpoint, between two, after the second
def test_killed_stage_ends_in_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    whole, cut = toy.token_stage(tmp_path, "whole"), toy.token_stage(tmp_path, "cut")
    train_on_rows(whole, lambda row: None)
    with pytest.raises(Killed):
        train_on_rows(cut, kill_at(killed_at))
    train_on_rows(cut, lambda row: None)
    expected, got = weights(whole.folder), weights(cut.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert [r["loss"] for r in read_metrics(whole.folder) if "loss" in r] == [
        r["loss"] for r in read_metrics(cut.folder) if "loss" in r
    ]


def test_metrics_have_every_step_once_and_the_summary_the_end(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    rows: list[dict[str, Any]] = []
    summary = train_on_rows(one, rows.append)
    logged = read_metrics(one.folder)
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, toy.STEPS + 1))
    assert [r["step"] for r in logged if "val_bpb" in r] == [4, 8]
    assert rows[-1]["val_bpb"] == summary["val_bpb"]
    assert summary == paths.read_json(one.folder + "/summary.json")
    assert summary["tokens"] == toy.STEPS * 6 * toy.CONFIG.sequence_len
    assert summary["unigram_bpb"] > 0
    assert paths.name(summary["checkpoint"]) == "step_000008"


def test_metrics_on_an_object_store_have_no_gap_after_a_kill(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one", folder=f"memory://{tmp_path.name}")
    with pytest.raises(Killed):
        train_on_rows(one, kill_at(7))  # long before the log's next upload
    train_on_rows(one, lambda row: None)
    assert [r["step"] for r in read_metrics(one.folder) if "loss" in r] == list(range(1, toy.STEPS + 1))


def test_stage_killed_between_its_last_checkpoint_and_its_summary_is_summed_up(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    summary = train_on_rows(one, lambda row: None)
    paths.remove(one.folder + "/summary.json")
    assert stage.finished(one.folder, one.settings) is None
    again = train_on_rows(one, lambda row: None)
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in summary.items() if k != "wall_s"}


def test_finished_stage_is_found_and_other_settings_are_refused(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    assert stage.finished(one.folder, {"seed": 0}) is None
    summary = train_on_rows(one, lambda row: None)
    assert stage.finished(one.folder, {"seed": 0}) == summary
    with pytest.raises(ValueError, match="seed: there 0, now 1"):
        stage.finished(one.folder, {"seed": 1})
    with pytest.raises(ValueError, match="other settings"):
        train_on_rows(toy.token_stage(tmp_path, "one", settings={"seed": 1}), lambda row: None)


def test_child_starts_from_the_parent_with_its_momenta(tmp_path: Path) -> None:
    parent = toy.token_stage(tmp_path, "parent")
    train_on_rows(parent, lambda row: None)
    path = checkpoint.latest(parent.folder)
    child = toy.token_stage(tmp_path, "child", parent=path)
    train_on_rows(child, lambda row: None)
    first = next(r["loss"] for r in read_metrics(child.folder) if "loss" in r)
    last = [r["loss"] for r in read_metrics(parent.folder) if "loss" in r][-1]
    assert first < last + 0.5  # not the fresh model's ln 265
    assert checkpoint.read_meta(checkpoint.latest(child.folder) or "")["parent"] == path

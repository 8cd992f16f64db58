"""Stages on token shards, in this process: what is done stays done, and data that changed or is empty is refused."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from tiny import byte_tokenizer

from raychat import paths
from raychat.cluster import Cluster
from raychat.cluster.launch import train_on_tokens
from raychat.data.pack import Packing, documents
from raychat.data.packing import Packed
from raychat.data.shards import Plan
from raychat.log import read_metrics
from raychat.recipe import Runtime
from raychat.train.stage import Stage

HERE = Cluster(workers=0)
T = toy.CONFIG.sequence_len
Packings = Callable[[], tuple[Packing, Packing]]


def stage_on(
    tmp_path: Path, train: str = "some words " * 999, val: str = "other words " * 99
) -> tuple[Stage, Packings]:
    """A toy stage and its packings, from two shards of one document each."""
    stage = toy.token_stage(tmp_path, "base", Runtime(device_rows=4, save_every=3, keep=0), steps=toy.STEPS)
    shards = [str(tmp_path / "data" / name) for name in ("train.jsonl", "val.jsonl")]
    for shard, text in zip(shards, (train, val), strict=True):
        paths.write_text(shard, json.dumps({"text": text}) + "\n")

    def packings() -> tuple[Packing, Packing]:
        first, second = (documents([shard], byte_tokenizer(), T, str(tmp_path)) for shard in shards)
        return first, second

    return replace(stage, source=None), packings


def interrupt(folder: Path) -> None:
    """Leave what a stage killed after step 6 leaves."""
    paths.remove(str(folder / "summary.json"))
    paths.remove(str(folder / "step_000008"))


def losses(stage: Stage) -> list[float]:
    return [row["loss"] for row in read_metrics(stage.folder) if "loss" in row]


def test_finished_stage_is_found_done_without_reading_data(tmp_path: Path) -> None:
    stage, packings = stage_on(tmp_path)
    summary = train_on_tokens(stage, packings, HERE)

    def not_called() -> tuple[Packing, Packing]:
        raise AssertionError

    assert train_on_tokens(stage, not_called, HERE) == summary
    data = summary["data"]["train"]
    assert paths.exists(data["folder"])
    assert data["sources"].keys() == {str(tmp_path / "data" / "train.jsonl")}
    assert (data["documents"], data["blocks"], data["of_blocks"]) == (1, 1, 1)
    assert data["tokens"] + data["lost"] == len("some words " * 999) + 1
    assert summary["data"]["val"]["tokens"] > 0


def test_interrupted_stage_goes_on_with_its_tokens_and_not_with_others(tmp_path: Path) -> None:
    stage, packings = stage_on(tmp_path)
    train_on_tokens(stage, packings, HERE)
    whole, folder = losses(stage), Path(stage.folder)
    interrupt(folder)
    _, changed = stage_on(tmp_path, train="same words " * 999)
    with pytest.raises(ValueError, match=r"another recipe.*inputs: there 'documents-"):
        train_on_tokens(stage, changed, HERE)
    _, packings = stage_on(tmp_path)
    for name in paths.names(str(tmp_path / "tokens")):
        paths.remove(str(tmp_path / "tokens" / name))
    train_on_tokens(stage, packings, HERE)
    assert losses(stage) == whole


def test_stage_that_an_older_raychat_began_goes_on(tmp_path: Path) -> None:
    """It named the same tokens by the times of their files, so they are packed once more."""
    stage, packings = stage_on(tmp_path)
    train_on_tokens(stage, packings, HERE)
    whole, folder = losses(stage), Path(stage.folder)
    interrupt(folder)
    meta = folder / "step_000006" / "meta.json"
    values = json.loads(meta.read_text())
    values["recipe"]["inputs"] = "91491783194f6464"
    meta.write_text(json.dumps(values))
    assert train_on_tokens(stage, packings, HERE)["recipe"]["inputs"].startswith("documents-")
    assert losses(stage) == whole


def test_validation_without_a_row_is_refused_before_a_step_is_taken(tmp_path: Path) -> None:
    stage, packings = stage_on(tmp_path, val="short")
    with pytest.raises(ValueError, match=r"val\.jsonl: 1 documents of 6 tokens fill no row of 33 tokens"):
        train_on_tokens(stage, packings, HERE)
    assert {name.split("-")[0] for name in paths.names(stage.folder)} == {"lease", "log.txt"}


def test_validation_without_a_row_is_refused_before_all_is_packed(tmp_path: Path) -> None:
    stage, packings = stage_on(tmp_path, val="short")

    def slow(block: int) -> Packed:
        time.sleep(0.2)
        return Packed(np.zeros((1, T + 1), np.uint16), 1, T + 1, 0)

    def with_slow_training() -> tuple[Packing, Packing]:
        plan = Plan(200, T, byte_tokenizer().vocab_size, masked=False, inputs="slow")
        return Packing(str(tmp_path / "tokens" / "slow"), plan, list(range(200)), slow), packings()[1]

    one_pass = replace(stage, recipe=replace(stage.recipe, steps=None))
    with pytest.raises(ValueError, match=r"val\.jsonl: 1 documents of 6 tokens"):
        train_on_tokens(one_pass, with_slow_training, HERE)
    assert len(paths.names(str(tmp_path / "tokens" / "slow"))) < 100

"""A run whose storage is a bucket: moto's server on 127.0.0.1 answers like S3."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import toy
from test_speedrun import STEPS, arguments

from jobs import speedrun
from raychat import checkpoint, paths, tinyworld
from raychat.cluster import Cluster
from raychat.data import shards
from raychat.lease import lease
from raychat.log import read_metrics
from raychat.runs import find_checkpoint, written
from raychat.train.run import run_stage
from raychat.train.stage import Stage

REPO = Path(__file__).parent.parent


def other_machine() -> Any:
    """A client that shares nothing with this process's."""
    return fsspec.filesystem("s3", skip_instance_cache=True)


def test_what_another_machine_writes_is_seen_at_once(bucket: str) -> None:
    file, other = f"{bucket}/runs/r/a.txt", other_machine()
    paths.write_text(f"{bucket}/runs/r/b.txt", "")
    for content in (b"one", b"two", b"three"):
        assert paths.names(f"{bucket}/runs/r") == ["b.txt"]
        assert not paths.exists(file)
        other.pipe_file(file, content)
        assert paths.exists(file)
        assert paths.names(f"{bucket}/runs/r") == ["a.txt", "b.txt"]
        assert paths.sizes(f"{bucket}/runs") == {"r/a.txt": len(content), "r/b.txt": 0}
        assert paths.size(file) == len(content)
        with paths.open_file(file) as opened:
            assert opened.read() == content
        assert Path(paths.local(file)).read_bytes() == content
        other.rm(file)


def test_folder_that_the_console_made_is_empty(bucket: str) -> None:
    """Amazon's console makes a folder of an object whose name ends in a slash."""
    other_machine().call_s3("put_object", Bucket=paths.name(bucket), Key="raychat/", Body=b"")
    assert paths.names(f"{bucket}/raychat") == []
    paths.write_text(f"{bucket}/raychat/a.txt", "")
    assert paths.names(f"{bucket}/raychat") == ["a.txt"]
    assert paths.sizes(f"{bucket}/raychat") == {"a.txt": 0}


def test_of_drivers_that_start_at_once_one_gets_the_lease(bucket: str) -> None:
    go, over = threading.Barrier(4), threading.Barrier(4)

    def start(_: int) -> str:
        go.wait()
        try:
            with lease(f"{bucket}/stage"):
                over.wait()
                return "held"
        except ValueError as error:
            over.wait()
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        outcomes = sorted(threads.map(start, range(4)))
    assert outcomes[0] == "held"
    assert all(text.startswith(f"{bucket}/stage is being trained by process ") for text in outcomes[1:])
    with lease(f"{bucket}/stage"):  # it has ended
        pass


def test_rows_are_read_while_blocks_are_made(bucket: str) -> None:
    folder, blocks = f"{bucket}/tokens", [np.full((2, 5), block, dtype=np.uint16) for block in range(4)]
    shards.write_plan(folder, shards.Plan(len(blocks), 4, 9, False, "x"))
    rows = shards.TokenRows(folder, log=lambda line: None)
    assert rows.available() == 0
    for block, content in enumerate(blocks):
        shards.write_block(folder, block, content)
        assert rows.rows([2 * block + 1])[0].tolist() == [[block] * 5]
    assert rows.num_rows() == 8


def stage_in(bucket: str, tmp_path: Path, name: str) -> Stage:
    one = replace(toy.token_stage(tmp_path, name), storage=bucket)
    toy.byte_tokenizer().save(one.tokenizer)
    return one


class Killed(Exception):
    pass


def test_killed_stage_resumes_and_ends_in_the_same_weights(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raychat.train.run.LOG_EVERY_S", 0.0)
    monkeypatch.setattr("raychat.train.run.QUICK_S", 600.0)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] >= 7:
            raise Killed

    whole, cut = toy.token_stage(tmp_path, "whole"), stage_in(bucket, tmp_path, "cut")
    run_stage(whole, lambda row: None)
    with pytest.raises(Killed):
        run_stage(cut, kill)
    assert checkpoint.latest(cut.folder) == f"{cut.folder}/step_000006"
    summary = run_stage(cut, lambda row: None)
    assert summary["checkpoint"] == f"{cut.folder}/step_000008"
    expected, got = (
        checkpoint.load_model(f"{one.folder}/step_000008", torch.device("cpu"))[0].state_dict() for one in (whole, cut)
    )
    assert all((expected[name] == got[name]).all() for name in expected)
    losses = [[row["loss"] for row in read_metrics(one.folder) if "loss" in row] for one in (whole, cut)]
    assert losses[0] == losses[1]


def test_newer_checkpoint_of_another_machine_is_found(bucket: str) -> None:
    """What serves the chat looks for it every other second."""
    for step in (1, 2):
        checkpoint.save_checkpoint(f"{bucket}/runs/r/sft", toy.model(), None, toy.byte_tokenizer(), toy.meta(step))
        found = find_checkpoint(bucket)
        assert found.path == f"{bucket}/runs/r/sft/step_{step:06d}"
        assert (datetime.now(UTC) - written(found.path)).total_seconds() < 3600


@pytest.fixture
def address() -> Iterator[str]:
    """A Ray cluster that knows of no bucket."""
    from ray.cluster_utils import Cluster as Machines

    machines = Machines()
    machines.add_node(num_cpus=4, include_dashboard=False, object_store_memory=256 * 1024**2)
    yield machines.address
    machines.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_speedrun_on_a_joined_cluster_leaves_nothing_to_do(
    address: str, bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What opens the bucket is in the driver's environment only."""
    tinyworld.write(str(tmp_path / "world"), scale=0.05)
    args = arguments(tmp_path / "world")
    joined = replace(args, cluster=Cluster(workers=2, address=address, storage_path=bucket))
    driver = f"from jobs import speedrun; speedrun.run(speedrun.Args(**{vars(joined)!r}))"
    environment = dict(os.environ)
    environment["FSSPEC_S3_ENDPOINT_URL"] = environment.pop("AWS_ENDPOINT_URL")  # Ray Train, too, must read this one
    command = [sys.executable, "-c", f"from raychat.cluster import Cluster\n{driver}"]
    subprocess.run(command, cwd=REPO, env=environment, check=True)
    written = other_machine().find(bucket, detail=True)
    report = paths.read_json(f"{bucket}/runs/r/report/report.json")
    assert {stage: figures["steps"] for stage, figures in report["stages"].items()} == STEPS
    assert all(figures["workers"] == 2 for figures in report["stages"].values())

    capfd.readouterr()
    again = speedrun.run(replace(args, cluster=Cluster(workers=0, storage_path=bucket)))
    assert again["stages"] == report["stages"]
    assert capfd.readouterr().out.count("already") >= len(STEPS) + 4  # stages and their evaluations
    stages = tuple(f"{bucket.removeprefix('s3://')}/runs/r/{stage}/" for stage in STEPS)
    now = other_machine().find(bucket, detail=True)
    assert {name: info["LastModified"] for name, info in now.items() if name.startswith(stages)} == {
        name: info["LastModified"] for name, info in written.items() if name.startswith(stages)
    }

"""The board between driver and workers, as a plain object, and which failures the workers are started again after."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy

from raychat.cluster import Cluster
from raychat.cluster.board import Board
from raychat.cluster.workers import _Failures, _work
from raychat.train.run import run_stage
from raychat.train.stage import Stage
from raychat.train.stop import Stopped


def test_a_stage_that_workers_have_taken_is_stopped_by_them() -> None:
    async def talk() -> None:
        board = Board()
        await board.post(["stage"])
        assert await board.next_stage(0) == (1, ["stage"])
        stopping = asyncio.create_task(board.stopping(1))
        await asyncio.sleep(0)
        assert not stopping.done()
        assert await board.stop()
        await stopping
        await board.finish(Stopped("at step 3"))
        assert str(await board.next_event()) == "at step 3"
        assert await board.next_stage(0) is None
        assert not await board.stop()  # the driver may say it again

    asyncio.run(talk())


def test_a_stage_that_no_worker_has_taken_is_not_begun() -> None:
    async def talk() -> None:
        board = Board()
        await board.post(["stage"])
        assert not await board.stop()
        assert await board.next_stage(0) is None

    asyncio.run(talk())


def test_asking_whether_to_stop_ends_with_the_stage() -> None:
    async def talk() -> None:
        board = Board()
        await board.post(["stage"])
        stopping = asyncio.create_task(board.stopping(1))
        await board.post(["the next one"])
        await stopping

    asyncio.run(talk())


def test_a_paused_stage_stays_on_the_board_for_the_next_workers() -> None:
    async def talk() -> None:
        board = Board()
        await board.post(["stage"])
        assert await board.next_stage(0) == (1, ["stage"])
        stopping, pause = asyncio.create_task(board.stopping(1)), asyncio.create_task(board.pause())
        await stopping
        assert not pause.done()
        await board.finish(Stopped("at step 3"))
        await pause
        assert str(await board.next_event()) == "at step 3"
        assert await board.next_stage(0) == (1, ["stage"])
        stopping = asyncio.create_task(board.stopping(1))
        await asyncio.sleep(0)
        assert not stopping.done()
        stopping.cancel()

    asyncio.run(talk())


def test_a_pause_waits_neither_for_idle_workers_nor_for_dead_ones() -> None:
    async def talk() -> None:
        board = Board()
        await board.post(["stage"])
        await board.pause()
        await board.next_stage(0)
        pause = asyncio.create_task(board.pause())
        await asyncio.sleep(0)
        assert not pause.done()
        await board.lost()
        await pause
        assert not await board.stop()  # nobody has the stage any more

    asyncio.run(talk())


@pytest.mark.parametrize(("cores", "workers", "threads"), [(6, 2, 3), (7, 2, 3), (1, 2, 1)])
def test_workers_of_one_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    import ray
    import ray.train
    import torch

    context = SimpleNamespace(get_local_world_size=lambda: workers, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    no_more_stages = SimpleNamespace(remote=lambda number: None)
    _work({"board": SimpleNamespace(next_stage=no_more_stages)})
    assert found == [threads]


def trained(stage: Stage, steps: int) -> None:
    run_stage(replace(stage, steps=steps), lambda row: None)


@pytest.mark.parametrize("error", [ValueError("no such file"), FloatingPointError("NaN")])
def test_an_error_that_would_come_again_ends_the_training(tmp_path: Path, error: Exception) -> None:
    from ray.train import WorkerGroupError

    failures = _Failures(toy.token_stage(tmp_path, "failing"), allowed=3)
    with pytest.raises(type(error), match=str(error)):
        failures.add(WorkerGroupError("two workers failed", {0: RuntimeError("connection closed by peer"), 1: error}))


def test_failures_in_a_row_end_the_training_and_a_checkpoint_ends_the_row(tmp_path: Path) -> None:
    from ray.train import WorkerGroupError

    died = WorkerGroupError("a worker died", {0: RuntimeError("connection closed by peer"), 1: OSError("disk")})
    stage = toy.token_stage(tmp_path, "failing")
    failures = _Failures(stage, allowed=2)
    for _ in range(2):
        failures.add(died)
    trained(stage, steps=1)
    for _ in range(2):
        failures.add(died)
    with pytest.raises(WorkerGroupError, match="a worker died"):
        failures.add(died)


def test_an_error_of_our_own_code_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        _Failures(toy.token_stage(tmp_path, "failing"), allowed=2).add(TypeError("cannot pickle 'generator' object"))


@pytest.mark.parametrize(
    ("given", "expected"), [(0, (0, 0)), ("0", (0, 0)), (2, (2, 2)), ("2", (2, 2)), ("2:8", (2, 8)), ("3:3", (3, 3))]
)
def test_workers_are_a_number_or_a_range(given: int | str, expected: tuple[int, int]) -> None:
    cluster = Cluster(workers=given)
    assert (cluster.min_workers, cluster.max_workers) == expected


@pytest.mark.parametrize("given", [-1, "-1", "0:2", "4:2", "4:0", "2:", ":2", "1:2:3", "two", ""])
def test_other_workers_are_refused(given: int | str) -> None:
    with pytest.raises(ValueError, match=rf"^--cluster\.workers is {given}; expected a number, 0 .* such as 2:8$"):
        Cluster(workers=given)

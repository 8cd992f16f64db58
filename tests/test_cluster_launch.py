"""Stages on Ray Train's workers: any number gives the same losses, and a death changes nothing."""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy

from raychat import checkpoint
from raychat.cluster import Cluster, workers
from raychat.cluster.launch import launch
from raychat.cluster.workers import shared_workers
from raychat.data.batches import Batch, Step
from raychat.log import read_metrics
from raychat.recipe import Runtime
from raychat.train.stage import Feed, Learner

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True)
def this_module_travels_by_value() -> None:
    """Workers cannot import the tests: their functions are sent as code."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def breaks(learner: Learner, *, source: Callable[[Learner], Feed], marker: str) -> Feed:
    """Open a source in which everything breaks once: Ray Train's controller at step 1, rank 1 at 4, the board at 7.

    A checkpoint lies between each two.
    """
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    from raychat import dist

    feed, rank = source(learner), dist.world().rank

    def first_time(number: int) -> bool:
        if os.path.exists(f"{marker}-{number}"):
            return False
        Path(f"{marker}-{number}").touch()
        return True

    def deadly(batches: Iterable[Batch], number: int) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if number == 1 and rank == 0 and first_time(number):
                ray.kill(get_train_context().controller_actor)
                time.sleep(600)  # the workers die with it
            if number == 4 and rank == 1 and first_time(number):
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 7 and rank == 0 and first_time(number):
                while not os.path.exists(f"{marker}-killed"):  # the driver's test kills the board
                    time.sleep(0.01)

    def steps(start: int) -> Iterator[Step]:
        for number, one in enumerate(whole(start), start):
            yield one._replace(batches=deadly(one.batches, number))

    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


@contextlib.contextmanager
def kills_the_board(marker: str) -> Iterator[None]:
    """In a thread, kill the board of the shared workers when their seventh step has begun."""
    import ray

    ended = threading.Event()

    def wait_and_kill() -> None:
        while not ended.wait(0.05):
            if os.path.exists(f"{marker}-7") and workers._shared and workers._shared._group:
                ray.kill(workers._shared._group._board)
                Path(f"{marker}-killed").touch()
                return

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    yield
    ended.set()
    thread.join()


def losses(folder: str) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(checkpoint.latest(folder) or "", torch.device("cpu"))[0].state_dict()


def notes_pid(learner: Learner, *, source: Callable[[Learner], Feed]) -> Feed:
    """Open a source and write this worker's process id beside its stage."""
    from raychat import dist

    Path(f"{learner.stage.folder}-pid-{dist.world().rank}").write_text(str(os.getpid()))
    return source(learner)


def pids(folder: str) -> list[str]:
    return [Path(f"{folder}-pid-{rank}").read_text() for rank in range(2)]


def test_workers_agree_and_whoever_dies_changes_nothing(tmp_path: Path, ray_cluster: None) -> None:
    storage = str(tmp_path)
    names = ("alone", "two", "again", "cut", "after")
    alone, two, again, cut, after = (toy.token_stage(tmp_path, name) for name in names)
    assert two.source is not None
    assert cut.source is not None
    noting = functools.partial(notes_pid, source=two.source)
    marker = str(tmp_path / "broken")
    breaking = functools.partial(breaks, source=cut.source, marker=marker)
    launch(alone, Cluster(workers=0))
    pair = Cluster(workers=2, storage_path=storage, max_failures=1)  # three failures, none of them after the other
    with shared_workers(pair):
        summary = launch(replace(two, source=noting), pair)
        launch(replace(again, source=noting), pair)
        with kills_the_board(marker):
            launch(replace(cut, source=breaking), pair)
        launch(replace(after, source=noting), pair)
    assert summary["workers"] == 2
    # the same rows, summed in another order, through eight optimizer steps in fp32
    assert losses(two.folder) == pytest.approx(losses(alone.folder), rel=1e-3)
    assert pids(two.folder) == pids(again.folder)

    assert {path.name for path in tmp_path.glob("broken-*")} == {f"broken-{what}" for what in (1, 4, 7, "killed")}
    assert set(pids(after.folder)).isdisjoint(pids(again.folder))
    expected = weights(two.folder)
    for stage in (again, cut, after):
        assert losses(stage.folder) == losses(two.folder)
        got = weights(stage.folder)
        assert all(torch.equal(expected[name], got[name]) for name in expected)


def fails(learner: Learner) -> Feed:
    with open(f"{learner.stage.folder}-attempts", "a") as attempts:
        attempts.write("1")
    raise ValueError(f"no room for {learner.stage.name}")


def test_an_error_that_would_come_again_is_raised_at_once(tmp_path: Path, ray_cluster: None) -> None:
    stage = replace(toy.token_stage(tmp_path, "failing"), source=fails)
    with pytest.raises(ValueError, match=r"^no room for test/failing$"):
        launch(stage, Cluster(workers=1, storage_path=str(tmp_path), max_failures=3))
    assert Path(f"{stage.folder}-attempts").read_text() == "1"


def signals_the_driver(learner: Learner, *, source: Callable[[Learner], Feed], driver: int) -> Feed:
    """Open a source whose rank 0 sends SIGTERM to the driver two steps after the start, where there are more workers.

    The steps that follow are slow, so that the signal arrives in time on any machine.
    """
    from raychat import dist

    rank, size = dist.world()

    def steps(start: int) -> Iterator[Step]:
        for number, step in enumerate(whole(start), start):
            if size > 1 and number == start + 2 and rank == 0:
                os.kill(driver, signal.SIGTERM)
            if size > 1 and number >= start + 2:
                time.sleep(2)
            yield step

    feed = source(learner)
    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


@pytest.mark.long
def test_sigterm_stops_all_workers_with_one_checkpoint_and_any_number_continues(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, stage = (replace(toy.token_stage(tmp_path, name, Runtime()), steps=120) for name in ("alone", "stopped"))
    assert stage.source is not None
    stage = replace(stage, source=functools.partial(signals_the_driver, source=stage.source, driver=os.getpid()))
    done = 0
    for size in (2, 3):
        with pytest.raises(SystemExit) as ended:
            launch(stage, Cluster(workers=size, storage_path=str(tmp_path)))
        assert ended.value.code == 128 + signal.SIGTERM
        path = checkpoint.latest(stage.folder) or ""
        meta = checkpoint.read_meta(path)
        assert (meta.step >= done + 3, meta.runtime.workers) == (True, size)
        line = f"test/stopped: stopped at step {meta.step} of 120; the same command continues"
        assert line in capsys.readouterr().out.splitlines()
        done = meta.step
        assert [row["step"] for row in read_metrics(stage.folder)] == list(range(1, done + 1))
    launch(stage, Cluster(workers=1, storage_path=str(tmp_path)))
    launch(alone, Cluster(workers=0))
    # The same rows in every step, summed in another order in fp32; 120 steps amplify that.
    assert losses(stage.folder) == pytest.approx(losses(alone.folder), rel=1e-2)
    assert losses(stage.folder)[:20] == pytest.approx(losses(alone.folder)[:20], rel=1e-4)


def test_more_workers_than_fit_are_refused(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(ValueError, match=r"99 workers need 99 CPUs; this Ray cluster has 8.*--cluster\.workers"):
        launch(toy.token_stage(tmp_path, "wide"), Cluster(workers=99, storage_path=str(tmp_path)))

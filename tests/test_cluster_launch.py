"""Stages on Ray Train's workers: any number gives the same losses, and a killed worker changes nothing."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy

from raychat import checkpoint
from raychat.cluster import Cluster
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


def dies_once(learner: Learner, *, source: Callable[[Learner], Feed], marker: str, step: int) -> Feed:
    """Open a source whose rank 1 kills itself with SIGKILL in the middle of a step, the first time."""
    from raychat import dist

    feed = source(learner)

    def deadly(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if dist.world().rank == 1 and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def steps(start: int) -> Iterator[Step]:
        for number, one in enumerate(whole(start), start):
            yield one._replace(batches=deadly(one.batches)) if number == step else one

    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


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


def test_workers_agree_and_a_killed_one_changes_nothing(tmp_path: Path, ray_cluster: None) -> None:
    storage = str(tmp_path)
    names = ("alone", "two", "again", "cut", "after")
    alone, two, again, cut, after = (toy.token_stage(tmp_path, name) for name in names)
    assert two.source is not None
    assert cut.source is not None
    noting = functools.partial(notes_pid, source=two.source)
    dying = functools.partial(dies_once, source=cut.source, marker=str(tmp_path / "died"), step=5)
    launch(alone, Cluster(workers=0))
    pair = Cluster(workers=2, storage_path=storage)
    with shared_workers(pair):
        summary = launch(replace(two, source=noting), pair)
        launch(replace(again, source=noting), pair)
        launch(replace(cut, source=dying), pair)
        launch(replace(after, source=noting), pair)
    assert summary["workers"] == 2
    # the same rows, summed in another order, through eight optimizer steps in fp32
    assert losses(two.folder) == pytest.approx(losses(alone.folder), rel=1e-3)
    assert pids(two.folder) == pids(again.folder)

    assert (tmp_path / "died").exists()
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
    """Open a source whose rank 0 sends SIGTERM to the driver in the third step."""
    from raychat import dist

    def steps(start: int) -> Iterator[Step]:
        for number, step in enumerate(whole(start), start):
            if number == 2 and dist.world().rank == 0:
                os.kill(driver, signal.SIGTERM)
            yield step

    feed = source(learner)
    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


def test_sigterm_to_the_driver_stops_all_workers_with_one_checkpoint(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = toy.token_stage(tmp_path, "stopped", Runtime(device_rows=4))
    assert stage.source is not None
    source = functools.partial(signals_the_driver, source=stage.source, driver=os.getpid())
    endless = replace(stage, steps=10**6, source=source)  # the signal arrives in time on any machine
    with pytest.raises(SystemExit) as ended:
        launch(endless, Cluster(workers=2, storage_path=str(tmp_path)))
    assert ended.value.code == 128 + signal.SIGTERM
    (path,) = checkpoint.all_in(stage.folder)
    meta = checkpoint.read_meta(path)
    assert (meta.step >= 3, meta.runtime.workers) == (True, 2)
    line = f"test/stopped: stopped at step {meta.step} of 1000000; the same command continues"
    assert line in capsys.readouterr().out.splitlines()
    assert [row["step"] for row in read_metrics(stage.folder)] == list(range(1, meta.step + 1))


def test_more_workers_than_fit_are_refused(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(ValueError, match=r"99 workers need 99 CPUs; this Ray cluster has 8.*--cluster\.workers"):
        launch(toy.token_stage(tmp_path, "wide"), Cluster(workers=99, storage_path=str(tmp_path)))

"""Stages on Ray Train's workers: any number gives the same losses, and a killed worker changes nothing."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from raychat.train.token_stage import TokenStage, train_on_rows

from raychat import checkpoint
from raychat.cluster import Cluster
from raychat.cluster.launch import launch
from raychat.log import Report, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True)
def this_module_travels_by_value() -> None:
    """Workers cannot import the tests: their functions are sent as code."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def train_and_die_once(work: TokenStage, report: Report, *, marker: str, step: int) -> dict[str, Any]:
    """Train, but the first time rank 1 kills itself with SIGKILL in the middle of a step."""
    from raychat import dist
    from raychat.train import loop, stage

    accumulate: Callable[..., Any] = loop.accumulate
    seen = 0

    def counting(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == step and dist.world().rank == 1 and not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return accumulate(*args)

    loop.accumulate = counting
    assert stage.train is loop.train
    return train_on_rows(work, report)


def losses(folder: str) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(checkpoint.latest(folder) or "", torch.device("cpu"))[0].state_dict()


def test_workers_agree_and_a_killed_one_changes_nothing(tmp_path: Path, ray_cluster: None) -> None:
    storage = str(tmp_path)
    alone, two, cut = (toy.token_stage(tmp_path, name) for name in ("alone", "two", "cut"))
    launch(train_on_rows, alone, name="alone", steps=alone.steps, cluster=Cluster(workers=0))
    pair = Cluster(workers=2, storage_path=storage)
    summary = launch(train_on_rows, two, name="two", steps=two.steps, cluster=pair)
    assert summary["workers"] == 2
    # the same rows, summed in another order, through eight optimizer steps in fp32
    assert losses(two.folder) == pytest.approx(losses(alone.folder), rel=1e-3)

    dying = functools.partial(train_and_die_once, marker=str(tmp_path / "died"), step=6)
    launch(dying, cut, name="cut", steps=cut.steps, cluster=pair)
    assert (tmp_path / "died").exists()
    assert losses(cut.folder) == losses(two.folder)
    expected, got = weights(two.folder), weights(cut.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def fail(work: str, report: Report) -> dict[str, Any]:
    raise ValueError(f"no room for {work}")


def test_a_workers_error_reaches_the_driver(tmp_path: Path, ray_cluster: None) -> None:
    cluster = Cluster(workers=1, storage_path=str(tmp_path), max_failures=0)
    with pytest.raises(Exception, match="no room for two"):
        launch(fail, "two", name="failing", steps=1, cluster=cluster)


def test_more_workers_than_fit_are_refused(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(ValueError, match=r"99 workers need 99 CPUs; this Ray cluster has 8.*--cluster\.workers"):
        launch(fail, "two", name="wide", steps=1, cluster=Cluster(workers=99, storage_path=str(tmp_path)))

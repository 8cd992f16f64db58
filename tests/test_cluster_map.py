"""The fan-out: ordered, bounded and lazy, ended early; the deaths of actors are tested where actors are used."""

import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from ray import cloudpickle

from raychat.actors import InProcess
from raychat.cluster import Cluster
from raychat.cluster.map import FanOut, actors_per_core, actors_per_worker

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test


def test_without_actors_calls_are_made_here_when_asked_for() -> None:
    made: list[int] = []

    def call(held: list[int], item: int) -> int:
        held.append(item)
        return 10 * item

    results = InProcess(lambda: made).map(call, [1, 2, 3])
    assert next(results) == 10
    assert made == [1]
    assert list(results) == [20, 30]
    here = Cluster(workers=0)
    assert isinstance(actors_per_core(here, 3, name="here"), InProcess)
    assert isinstance(actors_per_worker(here, list, 3, name="here"), InProcess)


@pytest.mark.ray
def test_results_come_in_order_and_one_fan_out_maps_again(ray_cluster: None) -> None:
    def call(factor: int, item: int) -> int:
        time.sleep(0.2 if item == 0 else 0)  # the first is the last to finish
        return factor * item

    with closing(FanOut(lambda: 3, 2, name="order", max_failures=0)) as actors:
        assert list(actors.map(call, range(50))) == list(range(0, 150, 3))
        assert list(actors.map(call, [7])) == [21]


@pytest.mark.ray
def test_calls_run_ahead_within_bounds_and_stop_with_the_results(tmp_path: Path, ray_cluster: None) -> None:
    def call(_: None, item: int) -> int:
        (tmp_path / str(item)).touch()
        while item == 0 and len(list(tmp_path.iterdir())) < 20:  # the first waits for others
            time.sleep(0.05)
        return item

    with closing(FanOut(type(None), 2, name="bounded", max_failures=0)) as actors:
        with closing(actors.map(call, range(200))) as results:
            assert next(results) == 0
        assert 20 <= len(list(tmp_path.iterdir())) < 100
        assert list(actors.map(call, [300, 301])) == [300, 301]
        assert len(list(tmp_path.iterdir())) < 100


@pytest.mark.ray
def test_fan_out_serves_again_after_an_error(ray_cluster: None) -> None:
    def call(_: None, item: int) -> int:
        if item % 2:
            raise ArithmeticError(f"{item} is odd")
        return item

    with closing(FanOut(type(None), 2, name="odd", max_failures=0)) as actors:
        with pytest.raises(ArithmeticError, match=r"\d is odd"):
            list(actors.map(call, range(1, 9, 2)))
        assert list(actors.map(call, range(0, 20, 2))) == list(range(0, 20, 2))

"""Machines that come and go while a stage is trained: several Ray nodes on this machine, and drivers that join them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import elastic_driver
import pytest
import torch
from test_serve import wait_until

from raychat import checkpoint
from raychat.cluster import Cluster
from raychat.cluster.launch import launch
from raychat.log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
DRIVER = Path(elastic_driver.__file__)
SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


class Opened(NamedTuple):
    """One opening of a paced feed."""

    size: int
    rank: int
    start: int
    node: str


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """Nodes of one CPU each, besides a head without."""
    from ray.cluster_utils import Cluster as Machines

    machines = Machines()
    add_node(machines, num_cpus=0, include_dashboard=False)
    yield machines
    machines.shutdown()


def add_node(machines: Any, *, num_cpus: int = 1, **settings: Any) -> Any:
    """Start a node; the first one is the head."""
    for attempts_left in (2, 1, 0):
        try:
            return machines.add_node(num_cpus=num_cpus, object_store_memory=128 * 1024**2, **settings)
        except Exception as error:  # a node has a fixed time to come up, too short on a busy machine
            if "timed out during startup" not in str(error) or not attempts_left:
                raise
    raise AssertionError


def remove_nodes(machines: Any) -> None:
    """Kill all nodes but the head, and wait until Ray knows."""
    for node in list(machines.worker_nodes):
        machines.remove_node(node, allow_graceful=False)
    machines.wait_for_nodes(timeout=60)


def drain(machines: Any, node: str, notice_s: float) -> None:
    """Give notice that a node will be taken away, as a cloud does for a spot machine."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + notice_s) * 1000)
    assert GcsClient(address=machines.address).drain_node(node, reason, "spot", deadline_ms)[0]


class Driver:
    """A driver process of `elastic_driver.py`."""

    def __init__(self, machines: Any, scenario: str, root: Path) -> None:
        self._log = root / f"{scenario}.log"
        environment = os.environ | SETTINGS | {"RAY_ADDRESS": machines.address}
        with self._log.open("w") as out:
            command = [sys.executable, str(DRIVER), scenario, str(root)]
            self._process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait_for(self, what: Any) -> None:
        """Wait until `what()` is true. Raises AssertionError where the driver has ended before."""
        assert wait_until(lambda: what() or self._process.poll() is not None, timeout_s=900)
        assert what(), self._log.read_text()

    def finish(self) -> tuple[int, str]:
        """Wait for the driver's end; return its exit code and what it printed."""
        return self._process.wait(timeout=900), self._log.read_text()


def opened(folder: str) -> list[Opened]:
    """Return who has opened a feed of elastic_driver.paced so far."""
    path = Path(f"{folder}-opened")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    fields = [line.split() for line in lines if line.endswith("\n")]
    return [Opened(int(size), int(rank), int(start), node) for size, rank, start, node in fields]


def steps_done(folder: str) -> int:
    return max((row["step"] for row in read_metrics(folder)), default=0)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(checkpoint.latest(folder) or "", torch.device("cpu"))[0].state_dict()


def test_nodes_that_come_and_go_change_the_number_of_workers_and_nothing_else(machines: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "test" / "elastic")
    remove_nodes(machines)
    first = add_node(machines)
    with Driver(machines, "elastic", tmp_path) as driver:
        driver.wait_for(lambda: steps_done(folder) >= 1)
        add_node(machines)
        driver.wait_for(lambda: len([one for one in opened(folder) if one.size == 2]) == 2)
        pair = [one for one in opened(folder) if one.size == 2]
        (path,) = checkpoint.all_in(folder)  # the one that was saved for the new worker
        assert {one.start for one in pair} == {checkpoint.read_meta(path).step}
        machines.remove_node(first, allow_graceful=False)
        driver.wait_for(lambda: opened(folder)[-1].size == 1 and len(opened(folder)) == 4)
        Path(f"{folder}-go").touch()
        code, printed = driver.finish()
    assert code == 0, printed
    assert "failure 1 of at most 1 without a new checkpoint" in printed
    launch(elastic_driver.stage(tmp_path, "here"), Cluster(workers=0))
    expected, got = weights(str(tmp_path / "runs" / "test" / "here")), weights(folder)
    for name in expected:  # the same rows, summed in another order in fp32
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_workers_leave_a_node_that_will_be_taken_away(machines: Any, tmp_path: Path) -> None:
    """No failure is counted, and the same number of workers ends in the same weights."""
    drained, undisturbed = (str(tmp_path / "runs" / "test" / name) for name in ("drained", "undisturbed"))
    remove_nodes(machines)
    for _ in range(3):
        add_node(machines)
    with Driver(machines, "fixed", tmp_path) as driver:
        driver.wait_for(lambda: len(opened(drained)) == 2 and steps_done(drained) >= 1)
        taken_away = opened(drained)[0].node
        drain(machines, taken_away, notice_s=3600)
        driver.wait_for(lambda: len(opened(drained)) == 4)
        (path,) = checkpoint.all_in(drained)
        again = opened(drained)[2:]
        assert {one.start for one in again} == {checkpoint.read_meta(path).step}
        assert taken_away not in {one.node for one in again}
        Path(f"{drained}-go").touch()
        code, printed = driver.finish()
    assert code == 0, printed
    expected, got = weights(undisturbed), weights(drained)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_nodes_without_a_shared_storage_and_workers_without_room_are_refused(machines: Any, tmp_path: Path) -> None:
    remove_nodes(machines)
    for number in range(2):
        add_node(machines, env_vars={"DISK_OF_THE_NODE": str(tmp_path / f"disk-{number}")})
    with Driver(machines, "refused", tmp_path) as driver:
        code, printed = driver.finish()
    assert code == 0, printed
    blind = r"^1 of 2 workers do not see what worker 0 writes to .*; set --cluster.storage-path to a folder or bucket"
    assert re.search(blind, printed, re.MULTILINE), printed
    room = r"^no room for \d+ s for 9:10 workers of 1 CPU; free now: 2 CPUs and 0 GPUs; set --cluster.workers lower, "
    assert re.search(room, printed, re.MULTILINE), printed
    assert not list(tmp_path.rglob("step_*"))


def test_nodes_that_do_not_share_the_storage_are_refused_before_anything_is_made(machines: Any, tmp_path: Path) -> None:
    remove_nodes(machines)
    add_node(machines)
    with Driver(machines, "apart", tmp_path) as driver:
        code, printed = driver.finish()
    assert code == 0, printed
    blind = (
        r"^2 of 2 nodes \([\d.]+, [\d.]+\) do not see what this process writes to memory://.*; "
        r"set --cluster.storage-path to a folder or bucket that all nodes share$"
    )
    assert len(re.findall(blind, printed, re.MULTILINE)) == 2, printed
    assert "made: []" in printed.splitlines()
    assert "making" not in printed

"""Train workers on Ray Train that take one stage after another, so that several stages can share their start."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raychat.cluster import Cluster

if TYPE_CHECKING:  # the board's process should start without torch
    from raychat.log import Report
    from raychat.train.stage import Stage

Ready = Callable[[], object]

_shared: "TrainWorkers | None" = None  # of the `shared_workers` block that this process is in


class TrainWorkers:
    """A `torch.distributed` group of workers (nccl on GPUs, gloo on CPUs). It starts when the first stage runs.

    When a worker dies, all start again, at most `cluster.max_failures` times, and the stage that was running resumes
    from its last checkpoint.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._board: Any = None  # until the first stage
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._busy = False

    def run(self, stage: "Stage", report: "Report", ready: Ready) -> dict[str, Any]:
        """Train a stage on every worker; return its summary.

        Args:
            report: gets the rows of rank 0 as they come.
            ready: returns when the stage can begin; it is called while the workers start.

        Raises:
            ray.train.TrainingFailedError: Workers failed too often; it holds their errors.
        """
        if self._thread is None:
            self._thread = self._start(stage.name)
        self._busy = True
        ready()
        # in a list, so that the board passes the reference on: only workers need what is in a stage
        ray.get(self._board.post.remote([ray.put(stage)]))
        while (event := ray.get(self._board.next_event.remote())) is not None:
            if event.finished:
                self._busy = False
                return dict(event.row)
            report(event.row)
        self._busy = False
        raise self._error or RuntimeError(f"the train workers ended before {stage.name} was finished")

    def close(self) -> None:
        """End the workers, without waiting for a stage that was interrupted."""
        if self._thread is None:
            return
        ray.get(self._board.end.remote())
        if not self._busy:
            self._thread.join()
            ray.kill(self._board)

    def _start(self, name: str) -> threading.Thread:
        self._cluster.connect()
        # on the driver's node, which lives as long as the job does, unlike a spot node
        on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=on_this_node).remote()
        thread = threading.Thread(target=self._fit, args=(name,), name="train workers", daemon=True)
        thread.start()
        return thread

    def _fit(self, name: str) -> None:
        try:
            _trainer(name, self._cluster, self._board).fit()
        except BaseException as error:
            self._error = error
        finally:
            if ray.is_initialized():  # not while this process ends: the call would start another Ray
                ray.get(self._board.end.remote())


@contextlib.contextmanager
def shared_workers(cluster: Cluster) -> Iterator[None]:
    """Let all stages that are launched inside run on one group of workers, which takes 20 s to start.

    On GPUs every stage starts its own: the evaluations in between need the GPUs.
    """
    global _shared
    with contextlib.closing(TrainWorkers(cluster)) as _shared:
        try:
            yield
        finally:
            _shared = None


def run_on_workers(stage: "Stage", cluster: Cluster, report: "Report", ready: Ready) -> dict[str, Any]:
    """Train a stage on the shared workers, or on workers of its own; see `TrainWorkers.run`."""
    cluster.connect()
    if _shared is not None and cluster.gpus() == 0:
        return _shared.run(stage, report, ready)
    with contextlib.closing(TrainWorkers(cluster)) as workers:
        return workers.run(stage, report, ready)


class _Event(NamedTuple):
    """What rank 0 tells the driver: a row of metrics, or the summary of a finished stage."""

    row: dict[str, Any]
    finished: bool = False


class _Board:
    """The actor between driver and workers: holds the stage to train, and the events that the driver has yet to see.

    Workers ask again after a restart, so a stage stays on the board until it is finished.
    """

    def __init__(self) -> None:
        self._number, self._stage, self._open = 0, list[Any](), True
        self._changed = asyncio.Condition()
        self._events = asyncio.Queue[_Event | None]()

    async def post(self, stage: list[Any]) -> None:
        """Put up the next stage: a list with its reference."""
        async with self._changed:
            self._number, self._stage = self._number + 1, stage
            self._changed.notify_all()

    async def next_stage(self, after: int) -> tuple[int, list[Any]] | None:
        """Wait for a stage that is not finished and has a number above `after`; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._open or (self._stage and self._number > after))
            return (self._number, self._stage) if self._open else None

    async def report(self, row: dict[str, Any]) -> None:
        await self._events.put(_Event(row))

    async def finish(self, summary: dict[str, Any]) -> None:
        """Take the stage down and pass on its summary."""
        self._stage = []
        await self._events.put(_Event(summary, finished=True))

    async def next_event(self) -> _Event | None:
        """Wait for an event; None at the end."""
        return await self._events.get()

    async def end(self) -> None:
        async with self._changed:
            self._open = False
            self._changed.notify_all()
        await self._events.put(None)


def _trainer(name: str, cluster: Cluster, board: Any) -> Any:
    import ray.train
    import ray.train.torch

    train: Any = ray.train  # it is annotated as Train V1 and holds Train V2
    gpus = cluster.gpus()
    return train.torch.TorchTrainer(
        _work,
        train_loop_config={"board": board},
        torch_config=train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=train.RunConfig(
            name=f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=cluster.storage() + "/ray",
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
            logging_config=train.LoggingConfig("WARNING"),
        ),
    )


def _work(settings: dict[str, Any]) -> None:
    """Set the threads and the device of one train worker, then run one stage after another."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from raychat.train.stage import run

    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    board, number = settings["board"], 0
    while (posted := ray.get(board.next_stage.remote(number))) is not None:
        number, (stage,) = posted
        summary = run(ray.get(stage), board.report.remote)  # reporting does not wait
        if context.get_world_rank() == 0:
            ray.get(board.finish.remote(summary))

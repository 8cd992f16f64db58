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
from raychat.train.stop import Stop, Stopped, never, stop_at_signals

if TYPE_CHECKING:  # the board's process should start without torch
    from raychat.log import Report
    from raychat.train.stage import Stage

Ready = Callable[[], object]
_LOOK_EVERY_S = 0.5  # for a signal, while nothing comes from the workers
_SAME_EVERY_TIME = (ValueError, FloatingPointError)  # errors of settings, data or weights, which no restart cures

_shared: "TrainWorkers | None" = None  # of the `shared_workers` block that this process is in


class TrainWorkers:
    """A `torch.distributed` group of workers (nccl on GPUs, gloo on CPUs). It starts when the first stage runs.

    When a worker dies, all start again, at most `cluster.max_failures` times, and the stage that was running resumes
    from its last checkpoint. An error that would come again ends the training instead.
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
            SystemExit: A signal arrived; the stage has saved a checkpoint at the end of the running step.
            ValueError, FloatingPointError: Raised by a worker.
            ray.train.TrainingFailedError: Workers failed too often; it holds their errors.
        """
        if self._thread is None:
            self._thread = self._start(stage.name)
        self._busy = True
        ready()
        # in a list, so that the board passes the reference on: only workers need what is in a stage
        ray.get(self._board.post.remote([ray.put(stage)]))
        with stop_at_signals() as stop:
            while (event := self._next_event(stop)) is not None:
                if isinstance(event, Stopped):
                    raise event
                if event.finished:
                    self._busy = False
                    return dict(event.row)
                report(event.row)
            if stop():
                raise Stopped(f"{stage.name}: stopped; the same command continues")
        self._busy = False
        raise self._error or RuntimeError(f"the train workers ended before {stage.name} was finished")

    def _next_event(self, stop: Stop) -> "_Event | Stopped | None":
        """Wait for the board's next event; pass on to the board that the stage should stop."""
        event = self._board.next_event.remote()
        while True:
            if stop() and not ray.get(self._board.stop.remote()):
                return Stopped("stopped before the workers began; the same command continues")
            if ray.wait([event], timeout=_LOOK_EVERY_S)[0]:
                received: _Event | Stopped | None = ray.get(event)
                return received

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
            cause = getattr(error, "controller_failure", None)
            self._error = cause if isinstance(cause, _SAME_EVERY_TIME) else error
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
        self._taken = self._stopping = False
        self._changed = asyncio.Condition()
        self._events = asyncio.Queue[_Event | Stopped | None]()

    async def post(self, stage: list[Any]) -> None:
        """Put up the next stage: a list with its reference."""
        async with self._changed:
            self._number, self._stage, self._taken = self._number + 1, stage, False
            self._changed.notify_all()

    async def next_stage(self, after: int) -> tuple[int, list[Any]] | None:
        """Wait for a stage that is not finished and has a number above `after`; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ends() or (self._stage and self._number > after))
            if self._ends():
                return None
            self._taken = True
            return self._number, self._stage

    def _ends(self) -> bool:
        return self._stopping or not self._open

    async def stop(self) -> bool:
        """Let the running stage stop, and begin no other; tell whether workers have taken it."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()
        return self._taken

    async def stopping(self, number: int) -> None:
        """Wait until the stage of this number should stop, or is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ends() or self._number > number)

    async def report(self, row: dict[str, Any]) -> None:
        await self._events.put(_Event(row))

    async def finish(self, end: dict[str, Any] | Stopped) -> None:
        """Take the stage down and pass on its summary, or where it stopped."""
        self._stage = []
        await self._events.put(end if isinstance(end, Stopped) else _Event(end, finished=True))

    async def next_event(self) -> _Event | Stopped | None:
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
            callbacks=[_one_attempt()],
        ),
    )


def _one_attempt() -> Any:
    """Return a callback of Ray Train's controller that lets an error end the training if it would come again."""
    import ray.train

    train: Any = ray.train

    class OneAttempt(train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, _SAME_EVERY_TIME):
                    raise error

    return OneAttempt()


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
    board, number, rank = settings["board"], 0, context.get_world_rank()
    preempted = _preemption()
    while (posted := ray.get(board.next_stage.remote(number))) is not None:
        number, (stage,) = posted
        stop = _stop_of(board, number) if rank == 0 else never
        end: dict[str, Any] | Stopped
        try:
            end = run(ray.get(stage), board.report.remote, stop=stop, save=preempted)  # reporting does not wait
        except Stopped as stopped:
            end = stopped
        if rank == 0:
            ray.get(board.finish.remote(end))


def _stop_of(board: Any, number: int) -> Stop:
    """Return what tells, without a round trip, whether the board wants this stage to stop."""
    stopping = board.stopping.remote(number)
    return lambda: bool(ray.wait([stopping], timeout=0)[0])


def _preemption() -> Callable[[], bool]:
    """Return what tells, on all workers alike, that a worker's node will be taken away; once for each notice.

    After such a checkpoint training goes on: Ray Train starts the workers again on other nodes when the node is gone.
    """
    import ray.train

    train: Any = ray.train
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return never
    known = None

    def is_new() -> bool:
        nonlocal known
        before, known = known, train.get_preemption_info()  # a barrier of all workers, some milliseconds
        return known is not None and known != before

    return is_new

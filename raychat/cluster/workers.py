"""Train workers on Ray Train that take one stage after another, so that several stages can share their start."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from raychat import checkpoint, paths
from raychat.cluster import Cluster
from raychat.cluster.board import StageEvent, start_board
from raychat.cluster.controller import on_state
from raychat.log import Report
from raychat.train.stage import Stage
from raychat.train.stop import Stop, Stopped, never, stop_at_signals

Ready = Callable[[], object]
_LOOK_EVERY_S = 0.5  # for a signal, while nothing comes from the workers
_RESIZE_EVERY_S = 60.0  # between looks whether the cluster has room for another number of workers
_SAME_EVERY_TIME = (ValueError, FloatingPointError)  # errors of settings, data or weights, which no restart cures

_shared: "TrainWorkers | None" = None  # of the `shared_workers` block that this process is in


class TrainWorkers:
    """A `torch.distributed` group of workers (nccl on GPUs, gloo on CPUs). It starts when the first stage runs.

    When a worker dies, all start again, and the stage that was running resumes from its last checkpoint. So it is when
    Ray Train's controller or the board dies. `cluster.max_failures` of that in a row, without a new checkpoint, are
    made up for. An error that would come again ends the training instead.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._group: _Group | None = None  # until the first stage

    def run(self, stage: Stage, report: Report, ready: Ready) -> dict[str, Any]:
        """Train a stage on every worker; return its summary.

        Args:
            report: gets the rows of rank 0 as they come.
            ready: returns when the stage can begin; it is called while the workers start.

        Raises:
            SystemExit: A signal arrived; the stage has saved a checkpoint at the end of the running step.
            ValueError, FloatingPointError: Raised by a worker, or no room for the workers.
            ray.train.TrainingFailedError: Workers failed too often; it holds their errors.
        """
        failures = _Failures(stage, self._cluster.max_failures)
        group = self._started(stage.name)
        ready()
        with stop_at_signals() as stop:
            while True:
                try:
                    if (summary := group.train(stage, report, stop)) is not None:
                        return summary
                except Stopped:
                    raise
                except Exception as error:
                    group.join()  # two groups must not write to one folder
                    failures.add(error)
                self._group = None
                group = self._started(stage.name)

    def _started(self, name: str) -> "_Group":
        self._group = self._group or _Group(name, self._cluster)
        return self._group

    def close(self) -> None:
        """End the workers, without waiting for a stage that was interrupted."""
        if self._group is not None:
            self._group.close()


class _Failures:
    """The failures of a stage in a row: those without a new checkpoint in between."""

    def __init__(self, stage: Stage, allowed: int) -> None:
        self._stage, self._allowed, self._count = stage, allowed, 0
        self._latest = checkpoint.latest(stage.folder)

    def add(self, error: Exception) -> None:
        """Count a failure. Raises what no restart cures, and the failure itself where there were too many in a row."""
        import ray.train

        train: Any = ray.train  # it is annotated as Train V1 and holds Train V2
        causes = [getattr(error, "controller_failure", error), *getattr(error, "worker_failures", {}).values()]
        for cause in causes:
            if isinstance(cause, _SAME_EVERY_TIME):
                raise cause
        if not isinstance(error, (train.TrainingFailedError, RayError)):
            raise error
        before, self._latest = self._latest, checkpoint.latest(self._stage.folder)
        self._count = self._count + 1 if self._latest == before else 1
        if self._count > self._allowed:
            raise error
        counted = f"failure {self._count} of at most {self._allowed} without a new checkpoint"
        print(f"{self._stage.name}: the workers start again after {counted}: {error}", flush=True)


class _Group:
    """One run of Ray Train and its board. It ends with its first failure; stages go on in another group."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        cluster.connect()
        self._board = start_board()
        self._error: BaseException | None = None
        self._busy = False
        self._thread = threading.Thread(target=self._fit, args=(name, cluster), name="train workers", daemon=True)
        self._thread.start()

    def _fit(self, name: str, cluster: Cluster) -> None:
        try:
            _trainer(name, cluster, self._board).fit()
        except BaseException as error:  # also the SystemExit that Ray raises here when this process ends
            self._error = error
        finally:
            if ray.is_initialized():  # not while this process ends: the call would start another Ray
                self._board.end.remote()

    def train(self, stage: Stage, report: Report, stop: Stop) -> dict[str, Any] | None:
        """Train a stage; return its summary, or None where the workers saved a checkpoint and ended to be replaced.

        Raises:
            Stopped: `stop` said so, and the stage has saved a checkpoint.
            Exception: the workers, the controller or the board failed.
        """
        self._busy, paused = True, False
        # in a list, so that the board passes the reference on: only workers need what is in a stage
        ray.get(self._board.post.remote([ray.put(stage)]))
        while (event := self._next_event(stop)) is not None:
            paused = isinstance(event, Stopped)
            if isinstance(event, StageEvent) and not event.finished:
                report(event.row)
            elif isinstance(event, StageEvent):
                self._busy = False
                return dict(event.row)
            elif stop():
                raise event
        self.join()
        if stop():
            raise Stopped(f"{stage.name}: stopped; the same command continues")
        if self._error is None and paused:
            return None
        raise self._error or RuntimeError(f"the train workers ended before {stage.name} was finished")

    def _next_event(self, stop: Stop) -> "StageEvent | Stopped | None":
        """Wait for the board's next event; pass on to the board that the stage should stop."""
        event = self._board.next_event.remote()
        while True:
            if stop() and not ray.get(self._board.stop.remote()):
                return Stopped("stopped while no worker was training; the same command continues")
            if ray.wait([event], timeout=_LOOK_EVERY_S)[0]:
                received: StageEvent | Stopped | None = ray.get(event)
                return received

    def join(self) -> None:
        """Wait until the workers have ended."""
        self._thread.join()
        self._busy = False

    def close(self) -> None:
        """End the workers, without waiting for a stage that was interrupted."""
        self._board.end.remote()
        if not self._busy:
            self._thread.join()
            ray.kill(self._board)


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


def run_on_workers(stage: Stage, cluster: Cluster, report: Report, ready: Ready) -> dict[str, Any]:
    """Train a stage on the shared workers, or on workers of its own; see `TrainWorkers.run`."""
    cluster.connect()
    if _shared is not None and cluster.gpus() == 0:
        return _shared.run(stage, report, ready)
    with contextlib.closing(TrainWorkers(cluster)) as workers:
        return workers.run(stage, report, ready)


def _trainer(name: str, cluster: Cluster, board: Any) -> Any:
    import ray.train
    import ray.train.torch

    train: Any = ray.train
    gpus = cluster.gpus()
    least, most = cluster.min_workers, cluster.max_workers
    what = f"{cluster.workers} workers of 1 CPU" + (f" and {gpus} GPUs" if gpus else "")
    return train.torch.TorchTrainer(
        _work,
        train_loop_config={"board": board},
        torch_config=train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=least if least == most else (least, most),
            elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=train.RunConfig(
            name=f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            **_storage(paths.join(cluster.storage(), "ray")),
            failure_config=train.FailureConfig(max_failures=0),  # this process starts the next run
            logging_config=train.LoggingConfig("WARNING"),
            callbacks=[on_state(board, what, cluster.max_wait_s)],
        ),
    )


def _storage(folder: str) -> dict[str, Any]:
    """Return Ray Train's settings of its storage: it opens a bucket by fsspec, as everything here does."""
    if paths.is_local(folder):
        return {"storage_path": folder}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = paths.file_system(folder)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _work(settings: dict[str, Any]) -> None:
    """Set the threads and the device of one train worker, then run one stage after another."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from raychat.train.run import run_stage

    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    board, number, rank = settings["board"], 0, context.get_world_rank()
    end: dict[str, Any] | Stopped = {}
    while not isinstance(end, Stopped) and (posted := ray.get(board.next_stage.remote(number))) is not None:
        number, (stage,) = posted
        stop = _stop_of(board, number) if rank == 0 else never
        try:
            end = run_stage(ray.get(stage), board.report.remote, stop=stop)  # reporting does not wait
        except Stopped as stopped:
            end = stopped
        if rank == 0:
            ray.get(board.finish.remote(end))


def _stop_of(board: Any, number: int) -> Stop:
    """Return what tells, without a round trip, whether the board wants this stage to stop, or has died."""
    stopping = board.stopping.remote(number)
    return lambda: bool(ray.wait([stopping], timeout=0)[0])

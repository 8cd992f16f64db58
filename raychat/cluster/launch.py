"""Join or start Ray, and run a stage on its workers."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raychat.cluster import Cluster
from raychat.cluster.prepare import prepare, prepare_async
from raychat.data.pack import Packing
from raychat.data.shards import TokenRows
from raychat.log import Progress, Report
from raychat.train.stage import Stage, finished
from raychat.train.stage import run as stage_run
from raychat.train.token_feed import TokenSource

Work = TypeVar("Work")

# Defaults that suit small machines; whatever the user has set wins. See Ray's constants of these names.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon the controller sees a dead worker or the end; Ray's is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # workers' prints are forwarded by Ray anyway: once is enough
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_FORWARDED = ("WANDB_", "HF_", "RAY_TRAIN_", "NCCL_", "TORCH_")  # the driver's variables that workers get as well
_LOGICAL_CPUS = 8  # at least so many on one's own machine: actors mostly wait, and a small laptop must not deadlock


def connect(cluster: Cluster) -> None:
    """Join the Ray cluster at `cluster.address` or RAY_ADDRESS, or start one on this machine; once per process."""
    if ray.is_initialized():
        return
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    variables = {k: v for k, v in os.environ.items() if k.startswith(_FORWARDED)}
    if address and address != "local":
        ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=True)
        return
    ray.init(
        address="local",
        num_cpus=max(_LOGICAL_CPUS, os.cpu_count() or 1),
        include_dashboard=True,  # Ray Train asks it about its own actors, and people like to look at it
        runtime_env={"env_vars": variables},
        logging_level=logging.WARNING,
    )


def num_gpus() -> int:
    """Return the cluster's GPUs."""
    return int(ray.cluster_resources().get("GPU", 0))


def launch(
    worker: Callable[[Work, Report], dict[str, Any]], work: Work, *, name: str, steps: int, cluster: Cluster
) -> dict[str, Any]:
    """Run `worker(work, report)` on every train worker and return what rank 0's returns.

    The workers form a `torch.distributed` group (nccl on GPUs, gloo on CPUs). When one dies, all are started again, at
    most `cluster.max_failures` times, and the worker function goes on from its own last checkpoint. Rows that rank 0
    reports are shown as progress on this terminal. With 0 workers the function runs in this process, without Ray.

    Args:
        worker: picklable; gets `work` and `report`.
        work: picklable values; paths in it are absolute or URLs.
        name: what the progress display shows.
        steps: at which step the progress is complete.
    """
    with Progress(name, steps) as progress:
        if cluster.workers == 0:
            return worker(work, progress.show)
        connect(cluster)
        return _fit(worker, work, name, cluster, progress)


def launch_stage(stage: Stage, cluster: Cluster) -> dict[str, Any]:
    """Run a training stage on the workers; return its summary."""
    return launch(stage_run, stage, name=stage.name, steps=stage.steps, cluster=cluster)


def train_on_tokens(
    stage: Stage, packings: Callable[[], tuple[Packing, Packing]], cluster: Cluster, *, max_val_rows: int | None = None
) -> dict[str, Any]:
    """Train a stage on token shards, which are made meanwhile, or find that it is trained; return its summary.

    Args:
        stage: its source is the packings; without `steps` in its recipe it makes one pass over them.
        packings: called only when there is something to do; returns what to train and what to validate on.
        max_val_rows: rows of an evaluation; None = all.
    """
    if (summary := finished(stage.folder, stage.recipe)) is not None:
        return summary
    train, val = packings()
    prepare(val, cluster)
    recipe = replace(stage.recipe, inputs=train.plan.inputs)
    with prepare_async(train, cluster):
        steps = recipe.steps or max(1, TokenRows(train.folder).num_rows() // recipe.rows_per_step)
        source = TokenSource(train.folder, val.folder, max_val_rows)
        stage = replace(stage, recipe=recipe, steps=steps, source=source)
        print(f"{stage.name}: {steps} steps of {recipe.rows_per_step} rows, from {stage.parent or 'fresh weights'}")
        return launch_stage(stage, cluster)


def _fit(
    worker: Callable[[Work, Report], dict[str, Any]], work: Work, name: str, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    import ray.train
    import ray.train.torch

    train: Any = ray.train  # its annotations are those of the first version, what it holds is the second
    gpus = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else int(num_gpus() > 0)
    _check_room(cluster, gpus)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # not on a spot node
    rows = ray.remote(_Rows).options(num_cpus=0, scheduling_strategy=here).remote()
    resources = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    trainer = train.torch.TorchTrainer(
        _run_worker,
        train_loop_config={"worker": worker, "work": work, "rows": rows},
        torch_config=train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=train.RunConfig(
            name=f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=cluster.storage() + "/ray",
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
            logging_config=train.LoggingConfig("WARNING"),
        ),
    )
    with _shown(rows, progress):
        return dict(trainer.fit().return_value)


def _check_room(cluster: Cluster, gpus: int) -> None:
    """Ray would wait without end for workers that do not fit; a cluster that can grow is left to do so."""
    have = ray.cluster_resources()
    need = {"CPU": cluster.workers, "GPU": cluster.workers * gpus}
    for resource, count in need.items():
        if have.get(resource, 0) < count:
            message = (
                f"{cluster.workers} workers need {count} {resource}s; this Ray cluster has {have.get(resource, 0):g}"
            )
            if len(ray.nodes()) == 1 and not os.environ.get("RAY_ADDRESS") and not cluster.address:
                raise ValueError(
                    f"{message}: set --cluster.workers lower or join a larger cluster by --cluster.address"
                )
            print(f"{message}: waiting for it to grow", flush=True)


def _run_worker(told: dict[str, Any]) -> dict[str, Any]:
    """One train worker: set its threads and device, then run the plain function."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    rows = told["rows"]

    def report(row: dict[str, Any]) -> None:
        rows.put.remote(row)

    return told["worker"](told["work"], report)


class _Rows:
    """What rank 0 has reported and the driver has not shown yet."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def put(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def drain(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return rows


@contextlib.contextmanager
def _shown(rows: Any, progress: Progress) -> Iterator[None]:
    """Show rows as they come, from a thread: `fit` holds this one."""
    done = threading.Event()

    def drain() -> None:
        for row in ray.get(rows.drain.remote()):
            progress.show(row)

    def poll() -> None:
        while not done.wait(0.5):
            drain()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drain()
        ray.kill(rows)

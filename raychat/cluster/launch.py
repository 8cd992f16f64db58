"""Run a stage on Ray Train's workers, or in this process."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raychat.cluster import Cluster
from raychat.cluster.prepare import Preparation, prepare
from raychat.data.pack import Packing
from raychat.data.shards import TokenRows
from raychat.log import Progress
from raychat.train.stage import Stage, finished, run
from raychat.train.token_feed import TokenSource


def launch(stage: Stage, cluster: Cluster) -> dict[str, Any]:
    """Run a training stage on every train worker; return its summary.

    The workers form a `torch.distributed` group (nccl on GPUs, gloo on CPUs). When one dies, all start again, at most
    `cluster.max_failures` times, and the stage resumes from its last checkpoint. This terminal shows the rows that
    rank 0 reports as progress. With 0 workers the stage runs in this process, without Ray.

    Raises:
        ValueError: This machine has too few CPUs or GPUs for the workers.
        ray.train.TrainingFailedError: Workers failed too often; it holds their errors.
    """
    with Progress(stage.name, stage.steps) as progress:
        if cluster.workers == 0:
            return run(stage, progress.show)
        cluster.connect()
        return _fit(stage, cluster, progress)


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
    with Preparation(train, cluster):
        steps = recipe.steps or max(1, TokenRows(train.folder).num_rows() // recipe.rows_per_step)
        source = TokenSource(train.folder, val.folder, max_val_rows)
        stage = replace(stage, recipe=recipe, steps=steps, source=source)
        print(f"{stage.name}: {steps} steps of {recipe.rows_per_step} rows, from {stage.parent or 'fresh weights'}")
        return launch(stage, cluster)


def _fit(stage: Stage, cluster: Cluster, progress: Progress) -> dict[str, Any]:
    import ray.train
    import ray.train.torch

    train: Any = ray.train  # it is annotated as Train V1 and holds Train V2
    gpus = cluster.gpus()
    _check_room(cluster, gpus)
    scaling = train.ScalingConfig(
        num_workers=cluster.workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
    )
    run_config = train.RunConfig(
        name=f"{stage.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
        storage_path=cluster.storage() + "/ray",
        failure_config=train.FailureConfig(max_failures=cluster.max_failures),
        logging_config=train.LoggingConfig("WARNING"),
    )
    with _shown(progress) as rows:
        trainer = train.torch.TorchTrainer(
            _run_worker,
            train_loop_config={"stage": stage, "rows": rows},
            torch_config=train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=scaling,
            run_config=run_config,
        )
        return dict(trainer.fit().return_value)


def _check_room(cluster: Cluster, gpus: int) -> None:
    """Refuse more workers than this machine has room for; Ray would wait forever. A joined cluster may grow."""
    have = ray.cluster_resources()
    need = {"CPU": cluster.workers, "GPU": cluster.workers * gpus}
    for resource, count in need.items():
        if have.get(resource, 0) < count:
            found = have.get(resource, 0)
            message = f"{cluster.workers} workers need {count} {resource}s; this Ray cluster has {found:g}"
            if len(ray.nodes()) == 1 and not os.environ.get("RAY_ADDRESS") and not cluster.address:
                raise ValueError(f"{message}: set --cluster.workers lower, or join a larger cluster: --cluster.address")
            print(f"{message}: waiting for it to grow", flush=True)


def _run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Set the threads and the device of one train worker, then run the plain function."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    return run(settings["stage"], settings["rows"].actor.put_nowait.remote)  # does not wait, unlike the queue's own put


@contextlib.contextmanager
def _shown(progress: Progress) -> Iterator[Queue]:
    """Yield a queue and show its rows as they come, in a thread: this one waits in `fit`."""
    # on the driver's node, which lives as long as the job does, unlike a spot node
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rows = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node})

    def show() -> None:
        for row in iter(rows.get, None):
            progress.show(row)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield rows
    finally:
        rows.put(None)
        thread.join()
        rows.shutdown(force=True)

"""Run a stage on train workers, or in this process, while its data is prepared."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from raychat import paths
from raychat.cluster import Cluster
from raychat.cluster.prepare import Preparation
from raychat.cluster.workers import Ready, run_on_workers
from raychat.data.pack import Packing
from raychat.data.shards import TokenRows
from raychat.lease import lease
from raychat.log import Progress
from raychat.train.finished import finished
from raychat.train.run import run_stage
from raychat.train.stage import Stage
from raychat.train.stop import stop_at_signals
from raychat.train.token_feed import TokenSource
from raychat.transcript import transcript


def launch(stage: Stage, cluster: Cluster, *, ready: Ready = lambda: None) -> dict[str, Any]:
    """Run a training stage on every train worker; return its summary.

    This terminal shows the rows that rank 0 reports as progress; `log.txt` in the stage's folder keeps what it shows.
    With 0 workers the stage runs in this process, without Ray.

    Args:
        ready: returns when the stage can begin; it is called while the workers start.

    Raises:
        ValueError: This machine has too few CPUs or GPUs for the workers, a worker raised it, or another driver trains
            the stage.
        SystemExit: SIGTERM or SIGINT arrived; the stage has saved a checkpoint, and the same command continues.
        ray.train.TrainingFailedError: Workers failed too often; it holds their errors.
    """
    log = paths.join(stage.folder, "log.txt")
    with lease(stage.folder), transcript(log), Progress(stage.name, stage.steps) as progress:
        if cluster.max_workers == 0:
            ready()
            with stop_at_signals() as stop:
                return run_stage(stage, progress.show, stop=stop)
        cluster.connect()
        _check_room(cluster)
        return run_on_workers(stage, cluster, progress.show, ready)


def train_on_tokens(
    stage: Stage,
    packings: Callable[[], tuple[Packing, Packing]],
    cluster: Cluster,
    *,
    source: Callable[[str, str], TokenSource] = TokenSource,
) -> dict[str, Any]:
    """Train a stage on token shards, which are made meanwhile, or find that it is trained; return its summary.

    Args:
        stage: its source is the packings; without `steps` in its recipe it makes one pass over them.
        packings: called only when there is something to do; returns what to train and what to validate on.
        source: from the folders of what to train and what to validate on to the stage's source.
    """
    if (summary := finished(stage.folder, stage.recipe)) is not None:
        return summary
    train, val = packings()
    recipe = replace(stage.recipe, inputs=train.plan.inputs)
    with Preparation(val, cluster) as validation, Preparation(train, cluster) as training:
        if (steps := recipe.steps) is None:
            validation.result()  # if it is empty, do not wait for the other one
            steps = max(1, TokenRows(training.result()).num_rows() // recipe.rows_per_step)
        stage = replace(stage, recipe=recipe, steps=steps, source=source(train.folder, val.folder))
        print(f"{stage.name}: {steps} steps of {recipe.rows_per_step} rows, from {stage.parent or 'fresh weights'}")
        return launch(stage, cluster, ready=validation.result)


def _check_room(cluster: Cluster) -> None:
    """Refuse more workers than this machine has room for; Ray would wait forever. A joined cluster may grow."""
    have = ray.cluster_resources()
    need = {"CPU": cluster.min_workers, "GPU": cluster.min_workers * cluster.gpus()}
    for resource, count in need.items():
        if have.get(resource, 0) < count:
            found = have.get(resource, 0)
            message = f"{cluster.min_workers} workers need {count} {resource}s; this Ray cluster has {found:g}"
            if len(ray.nodes()) == 1 and not os.environ.get("RAY_ADDRESS") and not cluster.address:
                raise ValueError(f"{message}: set --cluster.workers lower, or join a larger cluster: --cluster.address")
            print(f"{message}: waiting up to {cluster.max_wait_s:.0f} s for it to grow", flush=True)

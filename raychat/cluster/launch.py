"""Run a stage on train workers, or in this process, while its data is prepared."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raychat.cluster import Cluster
from raychat.cluster.prepare import Preparation
from raychat.cluster.workers import run_on_workers
from raychat.data.pack import Packing
from raychat.data.shards import TokenRows
from raychat.log import Progress
from raychat.train.stage import Stage, finished, run
from raychat.train.token_feed import TokenSource


def launch(stage: Stage, cluster: Cluster) -> dict[str, Any]:
    """Run a training stage on every train worker; return its summary.

    This terminal shows the rows that rank 0 reports as progress. With 0 workers the stage runs in this process, without
    Ray. See `TrainWorkers.run` for the errors.
    """
    with Progress(stage.name, stage.steps) as progress:
        if cluster.workers == 0:
            return run(stage, progress.show)
        return run_on_workers(stage, cluster, progress.show)


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
    recipe = replace(stage.recipe, inputs=train.plan.inputs)
    with Preparation(val, cluster), Preparation(train, cluster):
        steps = recipe.steps or max(1, TokenRows(train.folder).num_rows() // recipe.rows_per_step)
        source = TokenSource(train.folder, val.folder, max_val_rows)
        stage = replace(stage, recipe=recipe, steps=steps, source=source)
        print(f"{stage.name}: {steps} steps of {recipe.rows_per_step} rows, from {stage.parent or 'fresh weights'}")
        return launch(stage, cluster)

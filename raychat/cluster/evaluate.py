"""Evaluations over Ray actors, each holding one `LoadedModel`; the figures do not depend on how many there are."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import ray
import torch

from raychat import checkpoint, paths
from raychat.cluster import Cluster
from raychat.cluster.launch import connect, num_gpus
from raychat.cluster.pool import ActorPool
from raychat.evals.evaluation import Call, Evaluation, LoadedModel
from raychat.log import Progress

SHOW_EVERY_S = 2.0


def evaluate(path: str, evaluations: Sequence[Evaluation], cluster: Cluster) -> dict[str, Any]:
    """Evaluate the checkpoint at `path`; return what the evaluations give, joined.

    The work is spread over `cluster.workers` actors, which must all be able to read `path`; with 0 it is done here.
    An actor that dies is replaced and the piece it had is done again; an exception in the work is raised here.

    Raises:
        ValueError: `path` is no checkpoint, or two evaluations give a figure of one name.
        RuntimeError: actors keep dying, more than `cluster.max_failures` times in a row.
    """
    checkpoint.read_meta(path)
    work = [piece for evaluation in evaluations for piece in evaluation.calls]
    name = ", ".join(evaluation.name for evaluation in evaluations)
    with Progress(f"evaluate {name}", len(work)) as progress:
        shown = time.monotonic()

        def done(number: int) -> None:
            nonlocal shown
            if number == len(work) or time.monotonic() - shown >= SHOW_EVERY_S:
                shown = time.monotonic()
                progress.show({"step": number})

        results = _here(path, work, done) if cluster.workers == 0 else _spread(path, work, cluster, done)
    found: dict[str, Any] = {}
    for evaluation in evaluations:
        mine, results = results[: len(evaluation.calls)], results[len(evaluation.calls) :]
        figures = evaluation.finish(mine)
        if twice := found.keys() & figures.keys():
            raise ValueError(f"two evaluations give {', '.join(sorted(twice))}")
        found |= figures
    return found


def evaluate_stage(
    folder: str, settings: dict[str, Any], describe: Callable[[str], Sequence[Evaluation]], cluster: Cluster
) -> dict[str, Any]:
    """Evaluate a stage's newest checkpoint and write `eval.json` into its folder, or find that this has been done.

    Args:
        folder: of the stage, on the storage.
        settings: what the figures depend on besides the checkpoint; plain values.
        describe: from the checkpoint's path to what is to be evaluated; called only when there is something to do.

    Returns:
        The figures, `checkpoint`, `step`, `settings`, `wall_s` and `workers`.

    Raises:
        ValueError: the stage has no checkpoint yet.
    """
    path = checkpoint.latest(folder)
    if path is None:
        raise ValueError(f"no checkpoint in {folder} to evaluate; train that stage first, or name another --run")
    asked = json.loads(json.dumps({"checkpoint": paths.name(path), "settings": settings}))
    file = paths.join(folder, "eval.json")
    if paths.exists(file):
        done: dict[str, Any] = paths.read_json(file)
        if {key: done.get(key) for key in asked} == asked:
            print(f"evaluated already: {file}")
            return done
    started = time.monotonic()
    found = evaluate(path, describe(path), cluster)
    step = checkpoint.read_meta(path)["step"]
    result = {
        **asked,
        "step": step,
        "wall_s": round(time.monotonic() - started, 3),
        "workers": cluster.workers,
        **found,
    }
    paths.write_json(file, result)
    return result


def _here(path: str, work: Sequence[Call], done: Callable[[int], None]) -> list[Any]:
    loaded = LoadedModel.load(path)
    results = []
    for piece in work:
        results.append(piece(loaded))
        done(len(results))
    return results


def _spread(path: str, work: Sequence[Call], cluster: Cluster, done: Callable[[int], None]) -> list[Any]:
    connect(cluster)
    gpus = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else int(num_gpus() > 0)
    threads = max(1, (os.cpu_count() or 1) // cluster.workers)

    def make() -> Any:
        return ray.remote(num_cpus=1, num_gpus=gpus)(_Holder).remote(path, threads)

    num_actors = min(cluster.workers, len(work))
    with closing(ActorPool(make, num_actors, name="evaluate", max_failures=cluster.max_failures)) as pool:
        return pool.map(lambda actor, piece: actor.do.remote(piece), work, done)


class _Holder:
    """The actor: holds one loaded model and forwards the calls."""

    def __init__(self, path: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._loaded = LoadedModel.load(path)

    def do(self, piece: Call) -> Any:
        return piece(self._loaded)

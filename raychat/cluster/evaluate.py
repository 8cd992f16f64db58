"""Evaluations over Ray actors, each holding one `Subject`; the figures do not depend on how many there are."""

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
import torch

from raychat import checkpoint
from raychat.cluster import Cluster
from raychat.cluster.launch import connect, num_gpus
from raychat.evals.subject import Evaluation, Subject, Work
from raychat.log import Progress

SAY_EVERY_S = 30.0


def evaluate(path: str, evaluations: Sequence[Evaluation], cluster: Cluster) -> dict[str, Any]:
    """Evaluate the checkpoint at `path`; return what the evaluations give, joined.

    The work is spread over `cluster.workers` actors, which must all be able to read `path`; with 0 it is done here.
    An actor that dies is replaced and the piece it had is done again; an exception in the work is raised here.

    Raises:
        ValueError: `path` is no checkpoint.
        RuntimeError: actors died more than `cluster.max_failures` times.
    """
    checkpoint.read_meta(path)
    work = [piece for evaluation in evaluations for piece in evaluation.work]
    with Progress("evaluate", len(work)) as progress:
        results = _here(path, work, progress) if cluster.workers == 0 else _Pool(path, cluster).run(work, progress)
    found: dict[str, Any] = {}
    for evaluation in evaluations:
        mine, results = results[: len(evaluation.work)], results[len(evaluation.work) :]
        found |= evaluation.finish(mine)
    return found


def _here(path: str, work: Sequence[Work], progress: Progress) -> list[Any]:
    subject = Subject.load(path)
    results = []
    for piece in work:
        results.append(piece(subject))
        progress.show({"step": len(results)})
    return results


class _Holder:
    """The actor: holds the subject and forwards the work."""

    def __init__(self, path: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._subject = Subject.load(path)

    def do(self, piece: Work) -> Any:
        return piece(self._subject)


class _Pool:
    """Actors that do pieces of work, one each at a time, and are replaced when they die."""

    def __init__(self, path: str, cluster: Cluster) -> None:
        connect(cluster)
        gpus = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else int(num_gpus() > 0)
        self._make = ray.remote(num_cpus=1, num_gpus=gpus)(_Holder).remote
        self._arguments = (path, max(1, (os.cpu_count() or 1) // cluster.workers))
        self._num_actors = min(cluster.workers, _room(gpus))
        self._failures_left = cluster.max_failures

    def run(self, work: Sequence[Work], progress: Progress) -> list[Any]:
        """Return the results of all pieces, in order."""
        results: dict[int, Any] = {}
        waiting = deque(range(len(work)))
        idle: list[Any] = [self._make(*self._arguments) for _ in range(min(self._num_actors, len(work)))]
        busy: dict[Any, tuple[Any, int]] = {}  # result to come: (actor, number of the piece)
        try:
            while waiting or busy:
                while waiting and idle:
                    actor, number = idle.pop(), waiting.popleft()
                    busy[actor.do.remote(work[number])] = (actor, number)
                result = self._next(list(busy), len(results), len(work))
                actor, number = busy.pop(result)
                try:
                    results[number] = ray.get(result)
                except ray.exceptions.RayActorError as e:
                    waiting.appendleft(number)
                    actor = self._replace(actor, e)
                else:
                    progress.show({"step": len(results)})
                idle.append(actor)
        finally:
            for actor in [*idle, *(actor for actor, _ in busy.values())]:
                ray.kill(actor)
        return [results[number] for number in range(len(work))]

    def _replace(self, actor: Any, error: Exception) -> Any:
        ray.kill(actor)  # whatever is left of it: an actor that was only unreachable must not go on
        if self._failures_left == 0:
            raise RuntimeError("evaluation actors keep dying; the last one's end is the cause above") from error
        self._failures_left -= 1
        print(f"evaluate: an actor died and is replaced, its work is done again: {error}", flush=True)
        return self._make(*self._arguments)

    @staticmethod
    def _next(busy: list[Any], done: int, total: int) -> Any:
        """Wait for the next result, saying every now and then what for."""
        started = time.monotonic()
        while True:
            ready, _ = ray.wait(busy, num_returns=1, timeout=SAY_EVERY_S)
            if ready:
                return ready[0]
            print(f"evaluate: {done} of {total} done; no news for {time.monotonic() - started:.0f} s", flush=True)


def _room(gpus: int) -> int:
    """Return how many actors fit the cluster. Raises ValueError where not one does."""
    have = ray.cluster_resources()
    fits = int(min(have.get("CPU", 0), have.get("GPU", 0) // gpus if gpus else float("inf")))
    if fits < 1:
        raise ValueError(f"an evaluation actor needs 1 CPU and {gpus} GPUs; this Ray cluster has {have}")
    return fits

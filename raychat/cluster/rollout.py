"""Rollouts on Ray actors, each holding one `Sampler`. Results depend neither on their number nor on which did what."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from raychat.cluster import Cluster
from raychat.cluster.launch import connect, num_gpus
from raychat.cluster.pool import ActorPool
from raychat.rl import Group, Question, Sampler

_MAX_DEATHS = 8  # in a row, without one finished call


class RolloutPool:
    """Rollout actors as the learner's rank 0 sees them (`raychat.rl.Pool`)."""

    def __init__(
        self, build: Callable[[], Sampler], num_actors: int, *, gpus: int = 0, max_failures: int = _MAX_DEATHS
    ) -> None:
        """Start actors that hold what `build` returns; it is called in their processes."""
        self._actors = ActorPool(partial(_start, build, gpus), num_actors, name="rollouts", max_failures=max_failures)

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        """Return for each call what `Sampler.rollout` returns with these weights.

        The weights are put into the object store once. Every call carries the reference and a name for them; an actor
        that has others, such as one that has just replaced another, fetches them.
        """
        published, version = [ray.put(_as_arrays(weights))], uuid.uuid4().hex
        return self._actors.map(lambda actor, call: actor.rollout.remote(published, version, call), calls)

    def close(self) -> None:
        """End the actors."""
        self._actors.close()


def num_actors(cluster: Cluster, wanted: int | None, num_calls: int) -> int:
    """Choose the number of rollout actors; 0 = every train worker makes its share of the rollouts itself.

    None asks for as many as train workers, if they leave so many GPUs free; without GPUs, for one per core. There are
    never more than calls in a step.
    """
    if cluster.workers == 0:
        return 0
    connect(cluster)
    if wanted is None:
        gpus = _gpus(cluster)
        free = num_gpus() - cluster.workers * gpus
        wanted = min(cluster.workers, max(0, free // gpus)) if gpus else max(cluster.workers, os.cpu_count() or 1)
    return min(wanted, num_calls)


@contextlib.contextmanager
def rollout_pool(build: Callable[[], Sampler], cluster: Cluster, count: int) -> Iterator[RolloutPool | None]:
    """Yield a pool of `count` actors, ended with the block; None for 0."""
    if count == 0:
        yield None
        return
    connect(cluster)
    pool = RolloutPool(build, count, gpus=_gpus(cluster))
    try:
        yield pool
    finally:
        pool.close()


def _gpus(cluster: Cluster) -> int:
    return cluster.gpus_per_worker if cluster.gpus_per_worker is not None else int(num_gpus() > 0)


def _start(build: Callable[[], Sampler], gpus: int) -> Any:
    return ray.remote(num_cpus=1, num_gpus=gpus)(_Holder).remote(build)


def _as_arrays(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return arrays, which all readers on a node share. bf16, which numpy has not, becomes fp32, which is exact."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in weights.items()}


class _Holder:
    """The actor: holds the sampler and forwards the calls."""

    def __init__(self, build: Callable[[], Sampler]) -> None:
        torch.set_num_threads(1)  # as many actors as cores; and the same sums however many they are
        self._sampler = build()
        self._version: str | None = None

    def rollout(self, published: list[Any], version: str, questions: Sequence[Question]) -> list[Group]:
        if version != self._version:
            self._sampler.load_weights(ray.get(published[0]))
            self._version = version
        return self._sampler.rollout(questions)

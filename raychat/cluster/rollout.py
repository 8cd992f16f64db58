"""Rollouts on Ray actors, each holding one `Sampler`. Results depend neither on their number nor on who does what."""

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

from raychat.cluster import Cluster, num_gpus
from raychat.cluster.map import FanOut
from raychat.evals.generate import Group, Question
from raychat.rl.sampler import Sampler

_MAX_DEATHS = 8  # in a row, without one finished call


class RolloutPool:
    """Rollout actors as the learner's rank 0 sees them (`raychat.rl.Pool`)."""

    def __init__(
        self, build: Callable[[], Sampler], num_actors: int, *, gpus: int = 0, max_failures: int = _MAX_DEATHS
    ) -> None:
        """Start actors that hold what `build` returns; it is called in their processes."""
        build_policy = partial(_Policy, build)
        self._actors = FanOut(build_policy, num_actors, name="rollouts", gpus=gpus, max_failures=max_failures)

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        """Return for each call what `Sampler.rollout` returns with these weights.

        The object store gets the weights once. Every call carries the reference and a version; an actor that holds
        another version, such as a replacement, fetches them first.
        """
        published = [ray.put(_as_arrays(weights))]  # in a list, so that Ray does not fetch it for every call
        return list(self._actors.map(partial(_Policy.rollout, published=published, version=uuid.uuid4().hex), calls))

    def close(self) -> None:
        """End the actors."""
        self._actors.close()


def num_actors(cluster: Cluster, wanted: int | None, num_calls: int) -> int:
    """Choose the number of rollout actors; 0 = every train worker makes its share of the rollouts itself.

    None asks for as many as there are train workers, if these leave enough GPUs free; without GPUs, for one per core.
    There are never more actors than calls in a step.
    """
    if cluster.max_workers == 0:
        return 0
    cluster.connect()
    if wanted is None:
        gpus = cluster.gpus()
        most, free = cluster.max_workers, num_gpus() - cluster.max_workers * gpus
        wanted = min(most, max(0, free // gpus)) if gpus else max(most, os.cpu_count() or 1)
    return min(wanted, num_calls)


@contextlib.contextmanager
def rollout_pool(build: Callable[[], Sampler], cluster: Cluster, count: int) -> Iterator[RolloutPool | None]:
    """Yield a pool of `count` actors and end it with the block; yield None for 0."""
    if count == 0:
        yield None
        return
    cluster.connect()
    with contextlib.closing(RolloutPool(build, count, gpus=cluster.gpus())) as pool:
        yield pool


def _as_arrays(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return arrays, which all readers on a node share. numpy has no bf16: it becomes fp32, which is exact."""
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in weights.items()}


class _Policy:
    """What an actor holds: a sampler and the version of its weights."""

    def __init__(self, build: Callable[[], Sampler]) -> None:
        torch.set_num_threads(1)  # one actor per core, and the same sums for any number of actors
        self._sampler = build()
        self._version: str | None = None

    def rollout(self, questions: Sequence[Question], published: list[Any], version: str) -> list[Group]:
        if version != self._version:
            self._sampler.load_weights(ray.get(published[0]))
            self._version = version
        return self._sampler.rollout(questions)

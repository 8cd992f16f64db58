"""Decode steps as CUDA graphs: one launch for a step instead of more than a thousand.

A graph holds the whole step, from token ids to sampled tokens, for a number of rows. Fewer requests are padded to the
next power of two. A graph reads its inputs from tensors that stay where they are; to replay it, these are overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from raychat.device import to_device
from raychat.engine.sampling import Draws, sample
from raychat.model.base import Model
from raychat.model.cache import KVCache, Pass

Outputs = tuple[Tensor, Tensor]  # tokens (R,) int64 and logits (R, V) fp32
Replay = Callable[[], object]  # computes the same outputs again, from the inputs as they are now
Capture = Callable[[Callable[[], Outputs]], tuple[Replay, Outputs]]


def cuda_graph(compute: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
    """Record what `compute` launches, without running it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()
    return graph.replay, outputs


@dataclass
class _Step:
    """The step of a number of rows: what it reads, and its graph once there is one."""

    table: Tensor  # of its pass
    draws: Tensor  # (R, 6) fp64
    replay: Replay | None = None
    outputs: Outputs | None = None


class DecodeGraphs:
    """Decode steps over a cache's first slots.

    The first step of a number of rows runs as it is, so that kernels are loaded and weights packed; the second one is
    recorded. Everything is recorded anew after the cache has moved or weights have changed.

    Args:
        cache: one with `packed`, whose passes read tensors alone.
        max_rows: requests that run at once.
    """

    @classmethod
    def of(cls, model: Model, cache: KVCache, max_rows: int) -> Self | None:
        """Return the graphs where the cache allows for them, else None."""
        return cls(model, cache, max_rows, cuda_graph) if cache.packed else None

    def __init__(self, model: Model, cache: KVCache, max_rows: int, capture: Capture) -> None:
        self._model, self._cache, self._max_rows, self._capture = model, cache, max_rows, capture
        self._parameters = list(model.parameters())
        self._steps: dict[int, _Step] = {}
        self._seen = self._state()

    def __call__(self, newest: np.ndarray, draws: np.ndarray) -> Outputs:
        """Append a token (B,) to each of the first B slots; return the next tokens (B,) and their logits (B, V).

        The next call overwrites both.

        Args:
            draws: (B, 6) fp64, as `Draws.of` reads them.
        """
        num = len(newest)
        rows = min(1 << (num - 1).bit_length(), self._max_rows)
        slots = np.minimum(np.arange(rows), num - 1)  # the last one is repeated, and computes and writes the same
        padded = to_device(draws[slots], self._cache.keys[0].device)
        if (state := self._state()) != self._seen:
            self._steps, self._seen = {}, state
        step = self._steps.get(rows)
        past = self._cache.begin(newest[slots], slots=slots, table=step.table if step else None)
        if step is None:
            self._steps[rows] = _Step(past.table, padded)
            tokens, logits = self._compute(past, padded)
        else:
            step.draws.copy_(padded)
            if step.replay is None:
                step.replay, step.outputs = self._capture(lambda: self._compute(past, step.draws))
            assert step.outputs is not None
            step.replay()
            tokens, logits = step.outputs
        past.finish()
        return tokens[:num], logits[:num]

    def _compute(self, past: Pass, draws: Tensor) -> Outputs:
        logits = self._model.logits(self._model.hidden(past.ids[None], past)[0])
        return sample(logits, Draws.of(draws)), logits

    def _state(self) -> tuple[int, ...]:
        """Return what tells whether the memory that graphs read is still in use, and the weights the same."""
        return self._cache.num_resizes, *(p._version for p in self._parameters)

"""Batches that carry their own weights, and the rows of each rank at each step.

The loss of a step is `sum_bt weights[b, t] * nll[b, t]` over all micro-batches of all ranks. The weights are normalised
over the whole step, so the loop divides by nothing, and any number of ranks takes the same step.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raychat import paths
from raychat.data.ahead import ahead
from raychat.data.shards import TokenRows
from raychat.dist import World
from raychat.model.loss import IGNORE

# Steps whose batches are made ahead: some MB of host memory each. Remote blocks are downloaded that early, too.
STEPS_AHEAD = 4


class Batch(NamedTuple):
    """One micro-batch."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, -1 where no token is predicted
    weights: Tensor  # (B, T) float32, normalised over the whole optimizer step of all ranks

    def cut(self, parts: int) -> "Iterator[Batch]":
        """Yield the rows in about so many micro-batches of one height, the last one possibly lower."""
        for part in zip(*(tensor.chunk(parts) for tensor in self), strict=True):
            yield Batch(*part)

    def pinned(self) -> "Batch":
        """Copy to memory of the host that a GPU reads by itself, unless the batch is there."""
        return Batch(*(tensor.pin_memory() for tensor in self))

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, without waiting for what the device has still to do."""
        if device.type != "cuda":
            return self
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.pinned()))


class Step(NamedTuple):
    """One optimizer step, as this worker sees it."""

    batches: Iterable[Batch]  # its micro-batches, possibly none
    metrics: Mapping[str, Any] = {}  # more figures for its row of metrics
    teaches: bool = True  # False = no worker has a gradient: the weights must stay as they are


def next_token(tokens: np.ndarray, mask: np.ndarray, scale: float, device: torch.device) -> Batch:
    """Make the next-token batch of rows.

    Args:
        tokens: (B, T + 1) int64.
        mask: (B, T + 1) bool, True where the token carries loss as a target.
        scale: weight of each such target: 1 / (number of them in the whole step).
    """
    inputs = torch.from_numpy(tokens[:, :-1].copy())
    carries = torch.from_numpy(mask[:, 1:].copy())
    targets = torch.from_numpy(tokens[:, 1:].copy()).masked_fill_(~carries, IGNORE)
    weights = carries.float().mul_(scale)
    return Batch(inputs, targets, weights).to(device)


def steps_of(
    rows: TokenRows,
    *,
    rows_per_step: int,
    device_rows: int,
    start: int,
    world: World,
    device: torch.device,
    stop: int | None = None,
) -> Iterator[Step]:
    """Yield this rank's micro-batches of every step from step `start` on.

    Step s takes `rows_per_step` rows from row s * rows_per_step on; after the last row comes the first again. Rank r of
    W takes every W-th of them, from the r-th on. The rows of a step depend only on s: one integer is enough to resume
    exactly, and any number of ranks sees the same data.

    For a GPU, and where rows are downloaded, a thread makes the batches some steps ahead; else each is made when it is
    asked for.

    Args:
        stop: step before which the thread ends; None = none.
    """

    def micro_batches(number: int) -> Iterator[Batch]:
        indices = np.arange(number * rows_per_step, (number + 1) * rows_per_step)
        scale = 1 / max(rows.num_valid(indices), 1)
        yield from _batches(rows, indices[world.rank :: world.size], device_rows, scale)

    steps: Iterator[Iterable[Batch]] = map(micro_batches, count(start) if stop is None else range(start, stop))
    if device.type == "cuda" or not paths.is_local(rows.folder):
        steps = ahead(_finished(steps, device), STEPS_AHEAD)
    for batches in steps:
        yield Step(batch.to(device) for batch in batches)


def _finished(steps: Iterable[Iterable[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Yield the micro-batches of every step, all of them made, and pinned for a GPU."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)  # a new thread's device is the first one
    for batches in steps:
        yield [batch.pinned() if on_gpu else batch for batch in batches]


def validation_batches(
    rows: TokenRows, num_rows: int, *, device_rows: int, world: World, device: torch.device
) -> Iterator[Batch]:
    """Yield this rank's share of the first `num_rows` rows, once; every target that carries loss weighs 1."""
    indices = np.arange(num_rows)[world.rank :: world.size]
    for batch in _batches(rows, indices, device_rows, 1.0):
        yield batch.to(device)


def _batches(rows: TokenRows, indices: np.ndarray, device_rows: int, scale: float) -> Iterator[Batch]:
    """Yield these rows in batches of at most `device_rows`, in the host's memory.

    All have one height, for which a model is compiled once: rows without loss fill up the last one.
    """
    height = even_height(len(indices), device_rows)
    for i in range(0, len(indices), height):
        part = rows.rows(indices[i : i + height])
        tokens, mask = (np.pad(x, ((0, height - len(x)), (0, 0))) for x in part)
        yield next_token(tokens, mask, scale, torch.device("cpu"))


def even_height(num_rows: int, device_rows: int) -> int:
    """Return the rows of as few batches as possible, all of one height, the last one padded.

    >>> even_height(40, 32), even_height(31, 32), even_height(41, 20)
    (20, 31, 14)
    """
    num_batches = max(1, -(-num_rows // device_rows))
    return max(1, -(-num_rows // num_batches))

"""A pass over token sequences of which some share their beginning: the beginning is computed once.

A row is a trunk and the branches that continue it, one behind the other. A token sees the trunk, and of the branches
its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raychat.device import to_device
from raychat.model.base import Model

_PAD = -1  # the branch of padding, which only padding sees


class BranchedRow(NamedTuple):
    """A trunk and its branches, as one row."""

    ids: list[int]
    positions: list[int]  # of each token in its own sequence
    branches: list[int]  # of each token; 0 = the trunk
    paths: list[list[int]]  # of each sequence: where its tokens are in the row


def shared_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with.

    >>> shared_prefix([[1, 2, 3], [1, 2, 4]])
    2
    """
    first, last = min(rows), max(rows)  # in the order of sequences, all others begin with what these two share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def row_of(sequences: Sequence[list[int]]) -> BranchedRow:
    """Lay sequences out as one row: what all of them begin with, then the rest of each.

    >>> row_of([[5, 6, 7], [5, 6, 8, 9]]).ids
    [5, 6, 7, 8, 9]
    """
    trunk = shared_prefix(sequences)
    row = BranchedRow(list(sequences[0][:trunk]), list(range(trunk)), [0] * trunk, [])
    for number, sequence in enumerate(sequences, start=1):
        start, rest = len(row.ids), sequence[trunk:]
        row.ids.extend(rest)
        row.positions.extend(range(trunk, len(sequence)))
        row.branches.extend([number] * len(rest))
        row.paths.append([*range(trunk), *range(start, start + len(rest))])
    return row


@torch.inference_mode()
def hidden(model: Model, rows: Sequence[BranchedRow]) -> Tensor:
    """Compute the last hidden states (B, T, C) of rows; behind a shorter row's end they mean nothing."""
    if all(len(row.paths) == 1 for row in rows):  # causal attention does not look at padding on the right
        return model.hidden(to_device(_padded([row.ids for row in rows], 0), model.device))
    past = BranchedPass(rows, model)
    x = model.hidden(past.ids[None], past)
    return x.view(len(rows), -1, x.size(-1))


class BranchedPass:
    """What a model asks for in a pass over rows with branches (`raychat.model.base.Past`)."""

    def __init__(self, rows: Sequence[BranchedRow], model: Model) -> None:
        ids, positions = _padded([row.ids for row in rows], 0), _padded([row.positions for row in rows], 0)
        branches, before = _padded([row.branches for row in rows], _PAD), np.full_like(ids, -1)
        for number, row in enumerate(rows):
            for path in row.paths:
                before[number, path[1:]] = ids[number, path[:-1]]
        flat = (to_device(x.reshape(-1), model.device) for x in (ids, before, positions))
        self.ids, self.before, self.positions = flat  # each (B * T,) int64; before is -1 at a start
        self._shape, self._windows = ids.shape, model.new_cache(1, 1).windows
        distance = positions[:, :, None] - positions[:, None]
        sees = (distance >= 0) & ((branches[:, None] == 0) | (branches[:, :, None] == branches[:, None]))
        self._masks = {
            window: to_device((sees & (distance <= window))[:, None], model.device) for window in set(self._windows)
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q (N, H, D) over what each token sees of k and v (N, K, D): (N, H, D)."""
        q, k, v = (x.view(*self._shape, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if q.size(1) != k.size(1) and q.is_cuda:  # the kernel that takes a mask knows no groups there
            k, v = (x.repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
        grouped = q.size(1) != k.size(1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._masks[self._windows[layer]], enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)


def _padded(rows: Sequence[Sequence[int]], value: int) -> np.ndarray:
    """Return rows as one array (B, T) int64, padded on the right."""
    width = max(len(row) for row in rows)
    return np.array([[*row, *[value] * (width - len(row))] for row in rows], dtype=np.int64)

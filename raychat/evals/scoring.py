"""What a model predicts at the ends of token sequences, batched by length, for CORE and multiple choice."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raychat.model.base import Model
from raychat.model.branches import BranchedRow, hidden, row_of

Tokens = list[int]
_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}  # fastest; a CPU's cache holds the activations of few tokens


class Predictions(NamedTuple):
    """The predictions of one batch."""

    sequences: list[tuple[int, int]]  # (group, number in the group) of each sequence
    logits: Tensor  # (sum of their counts, V) fp32, one sequence after the other


class _Unit(NamedTuple):
    """Sequences that are computed as one row."""

    row: BranchedRow
    members: list[tuple[int, int]]  # (group, number in the group) of each


@torch.inference_mode()
def predictions(
    model: Model,
    groups: Sequence[Sequence[Tokens]],
    counts: Sequence[Sequence[int]],
    batch_tokens: int | None = None,
) -> Iterator[Predictions]:
    """Yield what the model predicts after each of the last `counts` tokens of sequences, the longest first.

    Args:
        groups: sequences whose common beginning is computed once, as far as they fit into the context side by side.
        counts: at least 1 and at most its length, for each sequence.
        batch_tokens: of one forward pass at most, with the padding, unless one row is longer; None = by the device.

    Raises:
        ValueError: a sequence is empty or longer than the context.
    """
    context = model.config.sequence_len
    lengths = [len(sequence) for group in groups for sequence in group]
    if lengths and not 1 <= min(lengths) <= max(lengths) <= context:
        raise ValueError(f"sequences must have 1 to {context} tokens, got {min(lengths)} to {max(lengths)}")
    units = [unit for number, group in enumerate(groups) for unit in _units(number, group, context)]
    units.sort(key=lambda unit: -len(unit.row.ids))
    batch_tokens = batch_tokens or _BATCH_TOKENS.get(model.device.type, 1024)
    while units:
        height = max(1, batch_tokens // len(units[0].row.ids))
        batch, units = units[:height], units[height:]
        x = hidden(model, [row for row, _ in batch])
        ends = [
            number * x.size(1) + place
            for number, (row, members) in enumerate(batch)
            for (i, j), path in zip(members, row.paths, strict=True)
            for place in path[-counts[i][j] :]
        ]
        yield Predictions([member for _, members in batch for member in members], model.logits(x.flatten(0, 1)[ends]))


def _units(number: int, group: Sequence[Tokens], context: int) -> list[_Unit]:
    row = row_of(group)
    if len(row.ids) <= context:
        return [_Unit(row, [(number, i) for i in range(len(group))])]
    return [_Unit(row_of([sequence]), [(number, i)]) for i, sequence in enumerate(group)]

"""Logits of rows of different lengths, padded and batched, for CORE and multiple choice."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raychat.model.base import Model


@torch.inference_mode()
def logits_of(model: Model, rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (row number, its logits (len(row), V) fp32), the longest rows first.

    Rows are padded on the right, where causal attention does not look. A batch has at least one row, and beyond that at
    most `batch_tokens` tokens with the padding.
    """
    device, context = model.device, model.config.sequence_len
    lengths = [len(row) for row in rows]
    if rows and not 1 <= min(lengths) <= max(lengths) <= context:
        raise ValueError(f"rows must have 1 to {context} tokens, got {min(lengths)} to {max(lengths)}")
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    while order:
        width = lengths[order[0]]
        height = max(1, batch_tokens // width)
        batch, order = order[:height], order[height:]
        padded = torch.zeros(len(batch), width, dtype=torch.int64)
        for i, row in enumerate(batch):
            padded[i, : lengths[row]] = torch.tensor(rows[row])
        logits = model(padded.to(device))
        for i, row in enumerate(batch):
            yield row, logits[i, : lengths[row]]

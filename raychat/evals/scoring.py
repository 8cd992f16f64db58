"""Forward passes over rows of different lengths, padded and batched; what CORE and multiple choice have in common."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raychat.model.base import Model

SHORTEST_ON_GPU = 128  # compiled attention is built anew for every shape: few shapes there, exact ones on the CPU


@torch.inference_mode()
def logits_of(model: Model, rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (row number, its logits (len(row), V) fp32), the longest rows first.

    Rows are padded on the right, which causal attention does not see. A batch has at most `batch_tokens` tokens, the
    padding included, and at least one row. Raises ValueError for an empty row or one longer than the model's context.
    """
    device = next(model.parameters()).device
    context = model.config.sequence_len
    lengths = [len(row) for row in rows]
    if rows and not 1 <= min(lengths) <= max(lengths) <= context:
        raise ValueError(f"rows must have 1 to {context} tokens, got {min(lengths)} to {max(lengths)}")
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    while order:
        width = padded_length(lengths[order[0]], context, device)
        height = max(1, batch_tokens // width)
        now, order = order[:height], order[height:]
        padded = torch.zeros(height if device.type == "cuda" else len(now), width, dtype=torch.int64)
        for i, row in enumerate(now):
            padded[i, : lengths[row]] = torch.tensor(rows[row])
        logits = model(padded.to(device))
        for i, row in enumerate(now):
            yield row, logits[i, : lengths[row]]


def padded_length(length: int, context: int, device: torch.device) -> int:
    """Return what rows of up to `length` tokens are padded to: on GPUs the next power of two within the context."""
    if device.type != "cuda":
        return length
    return min(context, max(SHORTEST_ON_GPU, 1 << (length - 1).bit_length()))

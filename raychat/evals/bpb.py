"""Bits per byte: the loss per byte of text instead of per token, which different tokenizers share.

Only targets with bytes of their own count: neither special tokens nor masked ones.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raychat import dist
from raychat.data.batches import Batch, next_token
from raychat.data.shards import TokenRows
from raychat.evals.evaluation import Call, Evaluation, LoadedModel, chunks
from raychat.intervals import draws_of_mean, interval

ROWS_PER_CALL = 64
DEVICE_ROWS = 8

Nll = Callable[[Tensor, Tensor], Tensor]  # a model's
MaskedRows = tuple[np.ndarray, np.ndarray]  # tokens (N, T + 1) int and mask (N, T + 1) bool, as of `TokenRows.rows`


def bits_per_byte(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor) -> float:
    """Evaluate a model's bits per byte over the batches of all workers. Collective: every worker calls it.

    Args:
        nll: a model's.
        batches: this worker's, possibly none; their weights do not matter.
        token_bytes: (V,) int on the model's device, the UTF-8 bytes of every token, 0 for special ones.
    """
    return losses(nll, batches, token_bytes)["val_bpb"]


def losses(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor) -> dict[str, float]:
    """Evaluate a model as `bits_per_byte` does; return `val_bpb`, and `val_loss`, the nats per token."""
    return figures(dist.sum_(sums_of(nll, batches, token_bytes)))


def sums_of(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor) -> Tensor:
    """Sum nats and bytes of the targets that have bytes, and count them, over these batches only: (3,) float64."""
    sums = torch.zeros(3, dtype=torch.float64, device=token_bytes.device)
    for batch in batches:
        sums += row_sums(nll, batch, token_bytes).sum(0)
    return sums


@torch.no_grad()
def row_sums(nll: Nll, batch: Batch, token_bytes: Tensor) -> Tensor:
    """Sum nats and bytes of the targets that have bytes, and count them, in each row of a batch: (B, 3) float64."""
    bytes_ = token_bytes[batch.targets.clamp(min=0)].masked_fill(batch.targets < 0, 0)  # (B, T)
    nats = nll(batch.inputs, batch.targets).masked_fill(bytes_ == 0, 0)
    return torch.stack([x.double().sum(-1) for x in (nats, bytes_, bytes_ > 0)], -1)


def figures(sums: Tensor) -> dict[str, float]:
    """Turn (nats, bytes, tokens) into bits per byte and nats per token."""
    nats, bytes_, tokens = sums.tolist()
    if bytes_ == 0:
        raise ValueError("no target has bytes of its own: the validation rows are empty or all masked")
    return {"val_bpb": nats / (math.log(2) * bytes_), "val_loss": nats / tokens}


def unigram_bpb(train: MaskedRows, val: MaskedRows, token_bytes: np.ndarray) -> float:
    """Return the bits per byte of a unigram model, which every trained model must beat.

    Its probabilities are the counts of the tokens among the targets of `train`, plus one for every token of the
    vocabulary. It is evaluated on the targets of `val` that have bytes. token_bytes: (V,) int.

    >>> rows = np.array([[0, 0, 1]]), np.array([[True, True, True]])
    >>> unigram_bpb(rows, rows, np.array([1, 1]))
    1.0
    """
    counts = _target_counts(train, len(token_bytes))
    probabilities = (counts + 1) / (counts.sum() + len(counts))
    targets = _target_counts(val, len(token_bytes)) * (token_bytes > 0)
    nats = -(targets * np.log(probabilities)).sum()
    sums = [nats, (targets * token_bytes).sum(), targets.sum()]
    return figures(torch.tensor(sums, dtype=torch.float64))["val_bpb"]


def _target_counts(rows: MaskedRows, vocab_size: int) -> np.ndarray:
    tokens, mask = rows
    return np.bincount(tokens[:, 1:][mask[:, 1:]], minlength=vocab_size)


def bpb_evaluation(folder: str, max_rows: int) -> Evaluation:
    """Describe bits per byte over the first rows of a complete folder of token shards.

    The figures are `losses`', and under `interval` how sure `val_bpb` is, by rows.

    folder: readable by every process that makes a call.
    """
    rows, T = range(min(TokenRows(folder).num_rows(), max_rows)), TokenRows(folder).plan.sequence_len
    calls = [
        Call("bits per byte", partial(_call, folder=folder, rows=part), len(part) * T)
        for part in chunks(rows, ROWS_PER_CALL)
    ]

    def finish(results: list[list[list[float]]]) -> dict[str, Any]:
        sums = torch.tensor([row for result in results for row in result], dtype=torch.float64)
        nats, bytes_ = (draws_of_mean(column) for column in sums.T[:2].tolist())  # of the same rows
        return {**figures(sums.sum(0)), "interval": {"val_bpb": list(interval(nats / (math.log(2) * bytes_)))}}

    return Evaluation("bits per byte", calls, finish)


def _call(loaded: LoadedModel, folder: str, rows: Sequence[int]) -> list[list[float]]:
    """Return the nats, bytes and tokens of each of the rows."""
    store, device = TokenRows(folder), loaded.model.device
    token_bytes = torch.from_numpy(loaded.tokenizer.token_bytes()).to(device)
    batches = (next_token(*store.rows(part), 1.0, device) for part in chunks(rows, DEVICE_ROWS))
    sums: list[list[float]] = torch.cat([row_sums(loaded.model.nll, b, token_bytes) for b in batches]).tolist()
    return sums

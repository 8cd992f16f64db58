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
from raychat.intervals import draws_of_ratio, interval

ROWS_PER_CALL = 64
DEVICE_ROWS = 8
BLOCKS = 128  # of rows, whose sums are kept to say how sure a figure is; row i is in block i % BLOCKS

Nll = Callable[[Tensor, Tensor], Tensor]  # a model's
MaskedRows = tuple[np.ndarray, np.ndarray]  # tokens (N, T + 1) int and mask (N, T + 1) bool, as of `TokenRows.rows`


def bits_per_byte(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor) -> float:
    """Evaluate a model's bits per byte over the batches of all workers. Collective: every worker calls it.

    Args:
        nll: a model's.
        batches: this worker's, possibly none; their weights do not matter.
        token_bytes: (V,) int on the model's device, the UTF-8 bytes of every token, 0 for special ones.
    """
    return figures(sums_of_all(nll, batches, token_bytes))["val_bpb"]


def sums_of_all(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor) -> Tensor:
    """Return `sums_of` the rows of all workers. Collective."""
    return dist.sum_(sums_of(nll, batches, token_bytes, dist.world()))


def sums_of(nll: Nll, batches: Iterable[Batch], token_bytes: Tensor, world: dist.World) -> Tensor:
    """Sum nats and bytes of the targets that have bytes, and count them, by block of rows: (BLOCKS, 3) float64.

    Args:
        batches: one worker's: every `world.size`-th row from the `world.rank`-th on, as of `validation_batches`.
    """
    sums = torch.zeros(BLOCKS, 3, dtype=torch.float64, device=token_bytes.device)
    row = world.rank
    for batch in batches:
        of_rows = row_sums(nll, batch, token_bytes)
        rows = torch.arange(row, row + len(of_rows) * world.size, world.size, device=sums.device)
        sums.index_add_(0, rows % BLOCKS, of_rows)
        row += len(of_rows) * world.size
    return sums


@torch.no_grad()
def row_sums(nll: Nll, batch: Batch, token_bytes: Tensor) -> Tensor:
    """Sum nats and bytes of the targets that have bytes, and count them, in each row of a batch: (B, 3) float64."""
    bytes_ = token_bytes[batch.targets.clamp(min=0)].masked_fill(batch.targets < 0, 0)  # (B, T)
    nats = nll(batch.inputs, batch.targets).masked_fill(bytes_ == 0, 0)
    return torch.stack([x.double().sum(-1) for x in (nats, bytes_, bytes_ > 0)], -1)


def figures(sums: Tensor) -> dict[str, float]:
    """Turn sums of nats, bytes and tokens, (3,) or (BLOCKS, 3), into `val_bpb` and `val_loss`, the nats per token."""
    nats, bytes_, tokens = sums.reshape(-1, 3).sum(0).tolist()
    if bytes_ == 0:
        raise ValueError("no target has bytes of its own: the validation rows are empty or all masked")
    return {"val_bpb": nats / (math.log(2) * bytes_), "val_loss": nats / tokens}


def spread(sums: Tensor) -> dict[str, dict[str, Any]]:
    """Return what tells how sure `val_bpb` is: under `outcomes` the sums of its blocks, and its `interval`.

    sums: (BLOCKS, 3), of which the nats are kept with six digits. Blocks without text are left out.
    """
    blocks = sums[sums[:, 1] > 0].tolist()
    nats, bytes_ = [float(f"{block[0]:.6g}") for block in blocks], [int(block[1]) for block in blocks]
    ends = interval(draws_of_ratio(nats, bytes_) / math.log(2))
    return {"outcomes": {"val_bpb": {"nats": nats, "bytes": bytes_}}, "interval": {"val_bpb": list(ends)}}


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

    The figures are those of `figures` and of `spread`.

    folder: readable by every process that makes a call.
    """
    rows, T = range(min(TokenRows(folder).num_rows(), max_rows)), TokenRows(folder).plan.sequence_len
    calls = [
        Call("bits per byte", partial(_call, folder=folder, rows=part), len(part) * T)
        for part in chunks(rows, ROWS_PER_CALL)
    ]

    def finish(results: list[list[list[float]]]) -> dict[str, Any]:
        of_rows = torch.tensor([row for result in results for row in result], dtype=torch.float64)
        sums = torch.zeros(BLOCKS, 3, dtype=torch.float64)
        sums.index_add_(0, torch.arange(len(of_rows)) % BLOCKS, of_rows)
        return {**figures(sums), **spread(sums)}

    return Evaluation("bits per byte", calls, finish)


def _call(loaded: LoadedModel, folder: str, rows: Sequence[int]) -> list[list[float]]:
    """Return the nats, bytes and tokens of each of the rows."""
    store, device = TokenRows(folder), loaded.model.device
    token_bytes = torch.from_numpy(loaded.tokenizer.token_bytes()).to(device)
    batches = (next_token(*store.rows(part), 1.0, device) for part in chunks(rows, DEVICE_ROWS))
    sums: list[list[float]] = torch.cat([row_sums(loaded.model.nll, b, token_bytes) for b in batches]).tolist()
    return sums

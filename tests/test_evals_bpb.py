"""Bits per byte against sums written out, token by token."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from tiny import byte_tokenizer

from raychat.data.batches import Batch, next_token, validation_batches
from raychat.data.shards import TokenRows
from raychat.dist import World
from raychat.evals import bpb
from raychat.evals.evaluation import LoadedModel
from raychat.model.loss import token_nll

CPU = torch.device("cpu")


def rows(num: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (num, toy.CONFIG.sequence_len + 1)
    return generator.integers(0, toy.VOCAB_SIZE, shape), generator.random(shape) < 0.7


def batches(tokens: np.ndarray, mask: np.ndarray, size: int) -> list[Batch]:
    return [next_token(tokens[i : i + size], mask[i : i + size], 0.5, CPU) for i in range(0, len(tokens), size)]


def lengths() -> np.ndarray:
    """Some tokens have several bytes, the special ones none."""
    generator = np.random.default_rng(1)
    return np.where(np.arange(toy.VOCAB_SIZE) < 256, generator.integers(1, 6, toy.VOCAB_SIZE), 0).astype(np.int32)


def by_hand(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray, token_bytes: np.ndarray) -> float:
    nats, total = 0.0, 0
    for row, carries in zip(tokens, mask, strict=True):
        logits = model(torch.from_numpy(row[None, :-1]))[0].double()
        for t in range(1, len(row)):
            if carries[t] and token_bytes[row[t]]:
                nats -= torch.log_softmax(logits[t - 1], -1)[row[t]].item()
                total += int(token_bytes[row[t]])
    return nats / math.log(2) / total


def test_equals_the_sum_written_out() -> None:
    model, (tokens, mask), token_bytes = toy.model(), rows(), lengths()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    with torch.no_grad():
        expected = by_hand(model, tokens, mask, token_bytes)
    got = bpb.bits_per_byte(model.nll, batches(tokens, mask, 4), torch.from_numpy(token_bytes))
    assert got == pytest.approx(expected, rel=1e-5)  # fp32 against fp64 log-softmax
    found = bpb.figures(bpb.sums_of_all(model.nll, batches(tokens, mask, 4), torch.from_numpy(token_bytes)))
    sizes = token_bytes[tokens[:, 1:][mask[:, 1:]]]
    assert found["val_loss"] == pytest.approx(expected * math.log(2) * sizes.sum() / (sizes > 0).sum(), rel=1e-5)


def test_division_into_batches_and_workers_does_not_matter(tmp_path: Path) -> None:
    model, token_bytes = toy.model(), torch.from_numpy(lengths())
    store = TokenRows(toy.token_folder(str(tmp_path / "rows"), num_rows=10, masked=True))
    whole = bpb.bits_per_byte(model.nll, batches(*store.rows(np.arange(7)), 7), token_bytes)

    def sums(size: int) -> torch.Tensor:
        worlds = [World(rank, size) for rank in range(size)]
        shares = [validation_batches(store, 7, device_rows=2, world=world, device=CPU) for world in worlds]
        parts = [bpb.sums_of(model.nll, share, token_bytes, world) for share, world in zip(shares, worlds, strict=True)]
        return torch.stack(parts).sum(0)

    assert bpb.figures(sums(3))["val_bpb"] == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(sums(3), sums(1), rtol=1e-6, atol=0)  # block by block


def test_evaluation_of_a_folder_equals_the_whole(tmp_path: Path) -> None:
    folder = toy.token_folder(str(tmp_path / "rows"), num_rows=200, masked=True)
    loaded = LoadedModel(toy.model(), byte_tokenizer())
    evaluation = bpb.bpb_evaluation(folder, max_rows=150)
    assert len(evaluation.calls) == 3
    found = evaluation.finish([call(loaded) for call in evaluation.calls])
    got, (low, high) = found["val_bpb"], found["interval"]["val_bpb"]
    assert low < got < high < low + 0.1  # 150 rows of a model that has learnt nothing: all much alike
    kept = found["outcomes"]["val_bpb"]
    assert len(kept["nats"]) == len(kept["bytes"]) == bpb.BLOCKS
    assert sum(kept["nats"]) / sum(kept["bytes"]) / math.log(2) == pytest.approx(got, rel=1e-5)  # six digits
    store, token_bytes = TokenRows(folder), torch.from_numpy(loaded.tokenizer.token_bytes())
    assert got == pytest.approx(bpb.bits_per_byte(loaded.model.nll, batches(*store.rows(range(150)), 50), token_bytes))


def test_uniform_model_of_single_bytes_needs_eight_bits_and_a_little() -> None:
    """Logits all zero: log2 of the vocabulary per byte."""
    tokens, mask = rows()
    tokens %= 256
    token_bytes = torch.from_numpy(byte_tokenizer().token_bytes())

    def uniform(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return token_nll(torch.zeros(*idx.shape, toy.VOCAB_SIZE), targets)

    got = bpb.bits_per_byte(uniform, batches(tokens, mask, 3), token_bytes)
    assert got == pytest.approx(math.log2(toy.VOCAB_SIZE), rel=1e-6)


def test_rows_without_targets_are_an_error() -> None:
    tokens, mask = rows()
    with pytest.raises(ValueError, match="no target"):
        bpb.bits_per_byte(toy.model().nll, batches(tokens, mask & False, 4), torch.from_numpy(lengths()))


def test_unigram_equals_the_sum_written_out() -> None:
    (train, train_mask), (val, val_mask), token_bytes = rows(5, seed=1), rows(3, seed=2), lengths()
    counts = [1] * toy.VOCAB_SIZE
    for row, carries in zip(train, train_mask, strict=True):
        for token in row[1:][carries[1:]]:
            counts[token] += 1
    nats, total = 0.0, 0
    for row, carries in zip(val, val_mask, strict=True):
        for token in row[1:][carries[1:]]:
            if token_bytes[token]:
                nats -= math.log(counts[token] / sum(counts))
                total += int(token_bytes[token])
    got = bpb.unigram_bpb((train, train_mask), (val, val_mask), token_bytes)
    assert got == pytest.approx(nats / math.log(2) / total, rel=1e-12)

"""Batches carry weights normalised over the step; rows are a function of step and rank."""

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from raychat.data.batches import Batch, next_token, steps_of, validation_batches
from raychat.data.shards import TokenRows
from raychat.dist import World

CPU = torch.device("cpu")


def step(
    rows: TokenRows, number: int, *, rank: int = 0, size: int = 1, rows_per_step: int = 7, device_rows: int = 2
) -> list[Batch]:
    batches = steps_of(
        rows, rows_per_step=rows_per_step, device_rows=device_rows, start=number, world=World(rank, size), device=CPU
    )
    return list(next(batches).batches)


def given(batches: list[Batch]) -> list[list[int]]:
    """The inputs of all rows that carry loss, sorted."""
    return sorted(row for b in batches for row in b.inputs[b.weights.any(1)].tolist())


def test_targets_are_the_next_tokens_and_masked_ones_are_ignored() -> None:
    tokens, mask = np.array([[5, 6, 7, 8]]), np.array([[True, True, False, True]])
    batch = next_token(tokens, mask, 0.5, CPU)
    assert batch.inputs.tolist() == [[5, 6, 7]]
    assert batch.targets.tolist() == [[6, -1, 8]]
    assert batch.weights.tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_weights_of_a_step_sum_to_one_over_all_workers(tmp_path: Path, masked: bool, size: int) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path), masked=masked))
    batches = [b for rank in range(size) for b in step(rows, 3, rank=rank, size=size)]
    assert sum(float(b.weights.sum()) for b in batches) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_any_number_of_workers_sees_the_same_rows(tmp_path: Path, size: int) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    alone, shared = step(rows, 2), [b for rank in range(size) for b in step(rows, 2, rank=rank, size=size)]
    assert given(alone) == given(shared)


def test_starting_at_a_step_gives_that_step(tmp_path: Path) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    batches = steps_of(rows, rows_per_step=7, device_rows=7, start=0, world=World(0, 1), device=CPU)
    for number in range(12):  # 84 rows of 40: the rows go round
        (batch,) = next(batches).batches
        (again,) = step(rows, number, device_rows=7)
        assert torch.equal(batch.inputs, again.inputs)


def remote(tmp_path: Path) -> TokenRows:
    return TokenRows(toy.token_folder(f"memory://{tmp_path.name}"))


def test_steps_made_ahead_are_the_same(tmp_path: Path) -> None:
    """On a storage that is not this machine's."""
    settings = {"rows_per_step": 7, "device_rows": 2, "world": World(1, 2), "device": CPU}
    plain = steps_of(TokenRows(toy.token_folder(str(tmp_path))), start=2, **settings)  # type: ignore[arg-type]
    early = steps_of(remote(tmp_path), start=2, stop=12, **settings)  # type: ignore[arg-type]
    made = [list(step.batches) for step in early]
    assert len(made) == 10
    for batches, (expected, _, _) in zip(made, plain, strict=False):
        for batch, same in zip(batches, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))


def test_only_where_it_is_needed_a_thread_makes_batches_ahead(tmp_path: Path) -> None:
    settings = {"rows_per_step": 7, "device_rows": 2, "start": 0, "world": World(0, 1), "device": CPU}
    local, far = TokenRows(toy.token_folder(str(tmp_path))), remote(tmp_path)
    before = set(threading.enumerate())
    near = steps_of(local, **settings)  # type: ignore[arg-type]
    next(near)
    assert not set(threading.enumerate()) - before
    early = steps_of(far, **settings)  # type: ignore[arg-type]
    next(early)
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["ahead"]


class Transfers(NamedTuple):
    """What was asked of a GPU, with the thread that asked for it."""

    devices: list[tuple[str, torch.device]]  # made a thread's own
    pinned: list[tuple[str, Tensor]]
    moved: list[tuple[Tensor, torch.device, bool]]  # tensor, where to, whether the host did not wait


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    """Note what PyTorch would do on a GPU; all tensors stay where they are."""
    found = Transfers([], [], [])

    def pin_memory(tensor: Tensor) -> Tensor:
        found.pinned.append((threading.current_thread().name, tensor))
        return tensor

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        found.moved.append((tensor, device, non_blocking))
        return tensor

    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: found.devices.append((threading.current_thread().name, device))
    )
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    return found


GPU = torch.device("cuda", 1)


def test_for_a_gpu_a_thread_makes_pinned_batches_ahead(tmp_path: Path, transfers: Transfers) -> None:
    settings = {"rows_per_step": 7, "device_rows": 4, "start": 0, "stop": 1, "world": World(0, 1)}
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    (step,) = steps_of(rows, device=GPU, **settings)  # type: ignore[arg-type]
    assert transfers.devices == [("ahead", GPU)]
    assert [thread for thread, _ in transfers.pinned] == ["ahead"] * 6  # three tensors of two batches
    assert not transfers.moved
    batches = list(step.batches)
    assert transfers.moved == [(tensor, GPU, True) for batch in batches for tensor in batch]


def test_validation_batches_go_to_the_gpu(tmp_path: Path, transfers: Transfers) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    batches = list(validation_batches(rows, 7, device_rows=4, world=World(0, 1), device=GPU))
    assert [tensor.data_ptr() for _, tensor in transfers.pinned] == [t.data_ptr() for b in batches for t in b]
    assert [(device, asynchronous) for _, device, asynchronous in transfers.moved] == [(GPU, True)] * 6


def test_validation_batches_visit_every_row_once(tmp_path: Path) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    ranks = [World(rank, 3) for rank in range(3)]
    batches = [b for w in ranks for b in validation_batches(rows, 11, device_rows=2, world=w, device=CPU)]
    assert all(len(b.inputs) <= 2 for b in batches)
    assert given(batches) == sorted(rows.rows(np.arange(11))[0][:, :-1].tolist())


@pytest.mark.parametrize("num_rows", [1, 5, 8, 9])
def test_batches_have_one_height_and_hold_every_row(tmp_path: Path, num_rows: int) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path), masked=True))
    validation = list(validation_batches(rows, num_rows, device_rows=4, world=World(0, 1), device=CPU))
    training = step(rows, 0, rows_per_step=num_rows, device_rows=4)
    scale = float(1 / rows.rows(range(num_rows))[1][:, 1:].sum())
    for batches, weight in ((validation, 1.0), (training, scale)):
        assert len(batches) == -(-num_rows // 4)
        assert len({batch.inputs.shape for batch in batches}) == 1
        joined = Batch(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
        expected = next_token(*rows.rows(range(num_rows)), weight, CPU)
        assert all(torch.equal(got[:num_rows], whole) for got, whole in zip(joined, expected, strict=True))
        assert (joined.targets[num_rows:] == -1).all()
        assert not joined.weights[num_rows:].any()

"""The loop: accumulation = one big batch, any number of workers = one, hooks at their steps."""

import math
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import toy
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from raychat import dist
from raychat.data.batches import Batch, Step, steps_of
from raychat.data.shards import TokenRows
from raychat.model.gpt import GPT
from raychat.optim import build_optimizer, schedule
from raychat.optim.schedule import Schedule
from raychat.train import loop
from raychat.train.loop import every, train

CPU = torch.device("cpu")
STEPS = 4


def losses(folder: str, *, device_rows: int, masked: bool = False) -> list[float]:
    """Train the toy model a few steps and return the loss of each."""
    torch.set_num_threads(1)
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=0.3, weight_decay=0.1)
    seen: list[float] = []
    batches = steps_of(
        TokenRows(folder), rows_per_step=7, device_rows=device_rows, start=0, world=dist.world(), device=CPU
    )
    train(
        model,
        optimizer,
        batches,
        steps=STEPS,
        schedule=schedule.base(STEPS),
        nll=model.nll,
        hooks=[lambda number, loss, step: seen.append(loss)],
    )
    return seen


@pytest.mark.parametrize("masked", [False, True])
def test_accumulation_is_the_big_batch(tmp_path: Path, masked: bool) -> None:
    folder = toy.token_folder(str(tmp_path), masked=masked)
    # fp32 sums in another order, through four optimizer steps
    assert losses(folder, device_rows=1) == pytest.approx(losses(folder, device_rows=7), rel=1e-4)


def _worker(rank: int, size: int, folder: str, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    seen = losses(folder, device_rows=2)
    if rank == 0:
        Path(store + ".losses").write_text(repr(seen))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])  # 3 does not divide the 7 rows of a step
def test_workers_give_the_losses_of_one(tmp_path: Path, size: int) -> None:
    folder = toy.token_folder(str(tmp_path / "tokens"))
    store = str(tmp_path / "store")
    mp.spawn(_worker, (size, folder, store), nprocs=size)
    assert eval(Path(store + ".losses").read_text()) == pytest.approx(losses(folder, device_rows=2), rel=1e-4)


def test_training_learns_to_count(tmp_path: Path) -> None:
    folder = toy.token_folder(str(tmp_path))
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    seen: list[float] = []
    batches = steps_of(TokenRows(folder), rows_per_step=20, device_rows=20, start=0, world=dist.world(), device=CPU)
    constant = Schedule(lambda _: 0.3, lambda _: 0.9, lambda _: 0.0)
    train(
        model,
        optimizer,
        batches,
        steps=60,
        schedule=constant,
        nll=model.nll,
        hooks=[lambda _, loss, __: seen.append(loss)],
    )
    assert seen[0] == pytest.approx(5.58, abs=0.05)  # ln 265: a uniform guess
    assert seen[-1] < 0.5


def test_a_step_without_valid_targets_changes_nothing_by_its_loss(tmp_path: Path) -> None:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    still = Schedule(lambda _: 1.0, lambda _: 0.9, lambda _: 0.0)
    seen: list[float] = []
    train(
        model,
        optimizer,
        iter([Step([])]),
        steps=1,
        schedule=still,
        nll=model.nll,
        hooks=[lambda _, loss, __: seen.append(loss)],
    )
    assert seen == [0.0]
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all()
        if "blocks" in name:
            assert torch.equal(value, before[name]), name


def test_a_step_that_teaches_nothing_leaves_the_weights_although_there_is_momentum(tmp_path: Path) -> None:
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    taught = steps_of(rows, rows_per_step=4, device_rows=4, start=0, world=dist.world(), device=CPU)
    states: list[dict[str, torch.Tensor]] = []
    train(
        model,
        optimizer,
        iter([next(taught), next(taught), Step([], teaches=False), Step([])]),
        steps=4,
        schedule=Schedule(lambda _: 0.3, lambda _: 0.9, lambda _: 0.1),
        nll=model.nll,
        hooks=[lambda *_: states.append({name: p.clone() for name, p in model.state_dict().items()})],
    )
    _, taught_twice, untaught, empty = states
    assert all(torch.equal(taught_twice[name], untaught[name]) for name in untaught)
    moved = [name for name in empty if not torch.equal(untaught[name], empty[name])]
    assert any("blocks" in name for name in moved)  # so there was momentum


def broken(step: Step) -> Step:
    return step._replace(batches=[batch._replace(weights=batch.weights * torch.nan) for batch in step.batches])


def counting_steps(folder: str) -> Iterator[Step]:
    rows = TokenRows(folder)
    return steps_of(rows, rows_per_step=4, device_rows=4, start=0, world=dist.world(), device=CPU)


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, part: str) -> None:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    steps = counting_steps(toy.token_folder(str(tmp_path)))
    states: list[dict[str, torch.Tensor]] = []
    seen: list[float] = []

    def nll(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The model's, whose loss or gradient breaks down in the second step."""
        finite = model.nll(ids, targets)
        if len(seen) != 1:
            return finite
        zero = (finite * 0).sum()  # the square root of its square is 0, and its gradient 0 * inf
        return finite * torch.nan if part == "loss" else finite + zero.square().sqrt()

    def note(number: int, loss: float, step: Step) -> None:
        seen.append(loss)
        states.append({name: p.clone() for name, p in model.state_dict().items()} | optimizer.state())

    assert train(model, optimizer, steps, steps=3, schedule=schedule.base(3), hooks=[note], nll=nll) == 3
    assert [math.isnan(loss) for loss in seen] == [False, True, False]
    first, skipped, third = states
    assert all(torch.equal(first[name], skipped[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in third.values())


def test_three_skipped_steps_in_a_row_need_other_weights(tmp_path: Path) -> None:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    bad = {1, 2, 4, 5, 6, 7, 8, 9}
    whole = enumerate(counting_steps(toy.token_folder(str(tmp_path))))
    batches = (broken(step) if number in bad else step for number, step in whole)
    rewound: list[int] = []

    def once(number: int) -> bool:
        rewound.append(number)
        return len(rewound) == 1

    with pytest.raises(FloatingPointError, match=r"step 10: the loss is nan.*expected finite.*lower learning rate"):
        train(model, optimizer, batches, steps=20, schedule=schedule.base(20), rewind=once, nll=model.nll)
    assert rewound == [7, 10]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_stop_ends_the_loop_after_a_step_that_counts(tmp_path: Path) -> None:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.28)
    whole = enumerate(counting_steps(toy.token_folder(str(tmp_path))))
    batches = (broken(step) if number in (2, 3) else step for number, step in whole)
    seen: list[int] = []
    hooks = [lambda number, loss, step: seen.append(number)]
    stop = iter([False, False, True, True, True]).__next__
    done = train(model, optimizer, batches, steps=9, schedule=schedule.base(9), hooks=hooks, stop=stop, nll=model.nll)
    assert done == 5
    assert seen == [1, 2, 3, 4, 5]


def _agreeing_worker(rank: int, size: int, folder: str, store: str) -> None:
    """Only rank 1 has a NaN, in the second step, and only rank 1 is asked to stop, in the fourth."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=0.3, weight_decay=0.1)
    batches = (
        broken(step) if rank == 1 and number == 1 else step for number, step in enumerate(counting_steps(folder))
    )
    seen: list[float] = []
    done = train(
        model,
        optimizer,
        batches,
        steps=9,
        schedule=schedule.base(9),
        nll=model.nll,
        hooks=[lambda number, loss, step: seen.append(loss)],
        stop=lambda: rank == 1 and len(seen) == 3,
    )
    checksum = sum(p.double().sum().item() for p in model.parameters())
    Path(f"{store}.{rank}").write_text(repr((done, seen, checksum)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_workers_skip_and_stop_together(tmp_path: Path) -> None:
    folder, store = toy.token_folder(str(tmp_path / "tokens")), str(tmp_path / "store")
    mp.spawn(_agreeing_worker, (2, folder, store), nprocs=2)
    first, second = (Path(f"{store}.{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("(4, [")
    assert first.count("nan") == 1


def limited(nll: loop.Nll, limits: Iterator[int]) -> loop.Nll:
    """A model's `nll` on a device that, call by call, has memory for so many rows."""

    def within(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(ids) > next(limits):
            raise torch.OutOfMemoryError
        return nll(ids, targets)

    return within


def test_a_step_that_does_not_fit_into_memory_is_taken_in_smaller_parts(tmp_path: Path) -> None:
    """The first of two micro-batches fits, the second does not: what the first has added must not count twice."""
    model, rows = toy.model(), TokenRows(toy.token_folder(str(tmp_path)))
    optimizer = build_optimizer(model, lr_scale=0.3, weight_decay=0.1)
    steps = steps_of(rows, rows_per_step=16, device_rows=8, start=0, world=dist.world(), device=CPU)
    batches = list(next(steps).batches)
    loss = loop.accumulate(model.nll, batches, CPU)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.zero_grad()
    nll = limited(model.nll, chain((8, 2), repeat(2)))
    got, parts = loop.accumulate_within_memory(nll, batches, optimizer, CPU, parts=1)
    assert parts == 4
    # fp32 sums in another order
    torch.testing.assert_close(got, loss, rtol=1e-5, atol=0)
    for grad, p in zip(expected, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)


def test_what_fitted_into_memory_is_kept_for_the_steps_that_follow(tmp_path: Path) -> None:
    model, calls = toy.model(), list[int]()
    optimizer = build_optimizer(model, lr_scale=0.3, weight_decay=0.1)

    def nll(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return limited(model.nll, repeat(2))(ids, targets)

    steps = counting_steps(toy.token_folder(str(tmp_path)))
    train(model, optimizer, steps, steps=2, schedule=schedule.base(2), nll=nll)
    assert calls == [4, 2, 2, 2, 2]


def test_a_row_that_does_not_fit_into_memory_ends_the_training(tmp_path: Path) -> None:
    model = toy.model()
    optimizer, nll = build_optimizer(model, lr_scale=0.3, weight_decay=0.1), limited(model.nll, repeat(0))
    with pytest.raises(torch.OutOfMemoryError):
        train(
            model,
            optimizer,
            counting_steps(toy.token_folder(str(tmp_path))),
            steps=1,
            schedule=schedule.base(1),
            nll=nll,
        )


def test_a_step_waits_for_its_device_only_to_read_its_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no numbers, so whatever reads one raises."""
    add_up, reads = loop.add_up, 0

    def totals(*args: Any) -> loop.Totals:
        nonlocal reads
        reads += 1
        with pytest.raises(DataDependentOutputException):
            add_up(*args)
        return loop.Totals(loss=1.0, norm=1.0, stops=0.0)

    monkeypatch.setattr(loop, "add_up", totals)
    with FakeTensorMode():
        model = GPT(toy.CONFIG)
        optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.1)
        ids = torch.zeros(2, 32, dtype=torch.int64)
        batch = Batch(ids, ids, torch.ones(2, 32))
        steps = iter([Step([batch, batch])] * 3)
        train(model, optimizer, steps, nll=model.nll, steps=3, schedule=schedule.base(3))
    assert reads == 3


def test_hooks_run_at_their_interval_and_at_the_end() -> None:
    seen: list[int] = []
    hook = every(3, 8, lambda number, loss, step: seen.append(number))
    for number in range(1, 9):
        hook(number, 0.0, Step([]))
    assert seen == [3, 6, 8]

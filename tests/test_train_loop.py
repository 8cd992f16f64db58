"""The loop: accumulation = one big batch, any number of workers = one, hooks at their steps."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import toy

from raychat import dist
from raychat.data.batches import Step, steps_of
from raychat.data.shards import TokenRows
from raychat.optim import build_optimizer, schedule
from raychat.optim.schedule import Schedule
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
        hooks=[lambda number, loss, step: seen.append(loss.item())],
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
        hooks=[lambda _, loss, __: seen.append(loss.item())],
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
        hooks=[lambda _, loss, __: seen.append(loss.item())],
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


def test_hooks_run_at_their_interval_and_at_the_end() -> None:
    seen: list[int] = []
    hook = every(3, 8, lambda number, loss, step: seen.append(number))
    for number in range(1, 9):
        hook(number, torch.zeros(()), Step([]))
    assert seen == [3, 6, 8]

"""Parameters that are updated together, and where: AdamW by rows, small AdamW ones everywhere, Muon by whole matrices.

A group is used in three beats: `reduce` asks for the sum of its gradients over the workers, `update` takes this
worker's part of that sum, updates what it owns and asks for the rest, and what `update` returns waits for the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from raychat.dist import World
from raychat.model.base import AdamW
from raychat.optim.shards import Slot, Split, Wait, sum_everywhere
from raychat.optim.updates import adamw_, muon_


class StepRates(NamedTuple):
    """The number of a step, from 1, and the schedule's values at it."""

    step: int
    lr: float
    momentum: float
    weight_decay: float


class AdamRows:
    """State and update of a range of rows of one parameter."""

    def __init__(self, name: str, rows: Tensor, rates: AdamW) -> None:
        self.rows, self.rates = rows, rates
        self.state = {f"{name}/{slot}": torch.zeros_like(rows, dtype=torch.float32) for slot in ("mean", "square")}

    def update(self, grad: Tensor, at: StepRates) -> None:
        rates = self.rates
        lr, decay = rates.lr * at.lr, rates.weight_decay
        adamw_(self.rows, grad, *self.state.values(), step=at.step, lr=lr, betas=rates.betas, weight_decay=decay)


class ShardedAdam:
    """One AdamW parameter, every worker its range of rows."""

    def __init__(self, name: str, p: Tensor, rates: AdamW, world: World) -> None:
        self._p, self._split = p, Split(len(p), world)
        self._own = AdamRows(name, p.detach()[self._split.start : self._split.stop], rates)

    def reduce(self) -> Wait:
        return self._split.reduce(gradient(self._p))

    def update(self, grad: Tensor, at: StepRates) -> Callable[[], object]:
        self._own.update(grad, at)
        return self._split.gather(self._own.rows, self._p.detach())

    def slot_names(self) -> list[str]:
        return list(self._own.state)

    def slots(self) -> Iterator[Slot]:
        for name, rows in self._own.state.items():
            yield Slot(name, rows, self._split.start, self._split.num_rows)


class ReplicatedAdam:
    """Small AdamW parameters: their gradients travel in one tensor, every worker updates all; the first saves them."""

    def __init__(self, members: Sequence[tuple[str, Tensor, AdamW]], world: World) -> None:
        self._params = [p for _, p, _ in members]
        self._own = [AdamRows(name, torch.atleast_1d(p.detach()), rates) for name, p, rates in members]
        self._world = world

    def reduce(self) -> Wait:
        return sum_everywhere(torch.cat([gradient(p).flatten() for p in self._params]), self._world)

    def update(self, grad: Tensor, at: StepRates) -> Callable[[], object]:
        for own, part in zip(self._own, grad.split([p.numel() for p in self._params]), strict=True):
            own.update(part.view_as(own.rows), at)
        return lambda: None

    def slot_names(self) -> list[str]:
        return [name for own in self._own for name in own.state]

    def slots(self) -> Iterator[Slot]:
        for own in self._own:
            for name, rows in own.state.items():
                yield Slot(name, rows, 0, len(rows), owned=self._world.rank == 0)


class Matrices:
    """Muon's matrices of one shape, stacked; every worker a range of the stack."""

    def __init__(self, names: Sequence[str], params: Sequence[Tensor], lr: float, decay: float, world: World) -> None:
        R, C = params[0].shape
        self._names, self._params, self._lr, self._decay = names, params, lr, decay
        self._split = Split(len(params), world)
        self._own = slice(self._split.start, self._split.stop)
        M = self._split.stop - self._split.start
        zeros = partial(torch.zeros, dtype=torch.float32, device=params[0].device)
        self._momentum = zeros(M, R, C)
        self._variance = zeros(M, R, 1) if R >= C else zeros(M, 1, C)

    def reduce(self) -> Wait:
        return self._split.reduce(torch.stack([gradient(p) for p in self._params]))

    def update(self, grad: Tensor, at: StepRates) -> Callable[[], object]:
        own = torch.empty_like(self._momentum)
        for row, p in zip(own, self._params[self._own], strict=True):
            row.copy_(p)
        if len(own):
            muon_(
                own,
                grad,
                self._momentum,
                self._variance,
                lr=self._lr * at.lr,
                momentum=at.momentum,
                weight_decay=self._decay * at.weight_decay,
            )
        wait = self._split.gather(own)

        def finish() -> None:
            for p, updated in zip(self._params, wait(), strict=True):
                p.copy_(updated)

        return finish

    def slot_names(self) -> list[str]:
        return [f"{name}/{slot}" for name in self._names for slot in ("momentum", "variance")]

    def slots(self) -> Iterator[Slot]:
        for i, name in enumerate(self._names[self._own]):
            for slot, stack in (("momentum", self._momentum), ("variance", self._variance)):
                yield Slot(f"{name}/{slot}", stack[i], 0, stack.size(1))


ParamGroup = ShardedAdam | ReplicatedAdam | Matrices


def gradient(p: Tensor) -> Tensor:
    """Return a parameter's gradient in float32; zeros where there is none."""
    return torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()

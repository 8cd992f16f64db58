"""Parameters that are updated together, and where: Muon by whole matrices, AdamW by rows, small AdamW ones everywhere.

A group is used in three beats: `reduce` asks for the sum of its gradients over the workers, `update` takes this
worker's part of that sum, updates what it owns and asks for the rest, and what `update` returns waits for the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from raychat.dist import World
from raychat.model.base import AdamW
from raychat.optim.shards import Slot, Split, Wait, deal, sum_everywhere
from raychat.optim.updates import adamw_, muon_

MUON_SLOTS = ("momentum", "variance")


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
        adamw_(
            self.rows,
            grad.float(),
            *self.state.values(),
            step=at.step,
            lr=rates.lr * at.lr,
            betas=rates.betas,
            weight_decay=rates.weight_decay,
            eps=rates.eps,
        )


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
        return sum_everywhere(torch.cat([gradient(p).float().flatten() for p in self._params]), self._world)

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


class Matrix(NamedTuple):
    """One of Muon's matrices."""

    name: str
    p: Tensor
    lr: float

    def kind(self) -> tuple[int, int, float]:
        """Return what those have in common that are updated in one stack."""
        return (*self.p.shape, self.lr)


class Place(NamedTuple):
    """A matrix and where it begins in the buffer of all."""

    member: Matrix
    start: int

    def of(self, flat: Tensor) -> Tensor:
        """Return the view of the buffer that is the matrix."""
        return flat[self.start :][: self.member.p.numel()].view(self.member.p.shape)


class Stack:
    """State and update of matrices of one kind, (M, R, C), that begin at `start` in a worker's range of the buffers."""

    def __init__(self, members: Sequence[Matrix], start: int) -> None:
        self._members, self._start, self._lr = members, start, members[0].lr
        M, (R, C), device = len(members), members[0].p.shape, members[0].p.device
        self.numel = M * R * C
        self._momentum = torch.zeros(M, R, C, device=device)
        self._variance = torch.zeros((M, R, 1) if R >= C else (M, 1, C), device=device)

    def write(self, weights: Tensor) -> Tensor:
        """Write the matrices to their place in `weights`, a worker's range; return that place, (M, R, C)."""
        return torch.stack([member.p for member in self._members], out=self._place(weights))

    def update(self, weights: Tensor, grad: Tensor, at: StepRates, decay: float) -> None:
        """Update the matrices, given their gradients in `grad`, and write them to `weights`; both are ranges."""
        stack = self.write(weights)
        rates = {"lr": self._lr * at.lr, "momentum": at.momentum, "weight_decay": decay * at.weight_decay}
        muon_(stack, self._place(grad), self._momentum, self._variance, **rates)
        torch._foreach_copy_([member.p for member in self._members], stack.unbind())

    def _place(self, own: Tensor) -> Tensor:
        return own[self._start :][: self.numel].view_as(self._momentum)

    def slots(self) -> Iterator[Slot]:
        for i, member in enumerate(self._members):
            for slot, stack in zip(MUON_SLOTS, (self._momentum, self._variance), strict=True):
                yield Slot(f"{member.name}/{slot}", stack[i], 0, stack.size(1))


class Matrices:
    """Muon's matrices of all shapes; each belongs to one worker, and all workers own about the same number of elements.

    Gradients and weights travel in one flat buffer with a range for each worker: its matrices, then at most a little
    padding. Dealing out each shape on its own would pad more: 10 matrices on 8 workers to 16.

    After an update a worker has its own matrices as they are, those of others rounded to `sent_as`, until `send_exact`.
    """

    def __init__(self, members: Sequence[Matrix], decay: float, sent_as: torch.dtype, world: World) -> None:
        self._decay, self._sent_as = decay, sent_as
        owners = deal([member.p.numel() for member in members], world.size)
        shares = [
            sorted((member for member, owner in zip(members, owners, strict=True) if owner == rank), key=Matrix.kind)
            for rank in range(world.size)
        ]
        starts = [list(accumulate((member.p.numel() for member in share), initial=0)) for share in shares]
        chunk = max(total for *_, total in starts)
        self._split, own = Split(chunk * world.size, world), shares[world.rank]
        places = [
            [Place(member, rank * chunk + start) for member, start in zip(share, starts[rank], strict=False)]
            for rank, share in enumerate(shares)
        ]
        self._places = [place for share in places for place in share]
        self._foreign = [place for rank, share in enumerate(places) if rank != world.rank for place in share]
        self._stacks, start = list[Stack](), 0
        for _, alike in groupby(own, Matrix.kind):
            self._stacks.append(Stack(list(alike), start))
            start += self._stacks[-1].numel

    def reduce(self) -> Wait:
        flat = self._zeros(self._split.num_rows)  # padding has no norm
        gradients = [gradient(place.member.p) for place in self._places]
        torch._foreach_copy_([place.of(flat) for place in self._places], gradients)
        return self._split.reduce(flat)

    def update(self, grad: Tensor, at: StepRates) -> Callable[[], object]:
        own = torch.empty_like(grad)
        for stack in self._stacks:
            stack.update(own, grad, at, self._decay)
        return self._send(own, self._sent_as)

    def send_exact(self) -> None:
        """Give every worker the matrices of the others as these have them."""
        if self._sent_as != torch.float32:
            own = self._zeros(self._split.stop - self._split.start)
            for stack in self._stacks:
                stack.write(own)
            self._send(own, torch.float32)()

    def _send(self, own: Tensor, dtype: torch.dtype) -> Callable[[], object]:
        """Begin to exchange the workers' ranges in `dtype`; what is returned waits and puts in place what came."""
        if self._split.world.size == 1:
            return lambda: None
        wait = self._split.gather(own.to(dtype))

        def finish() -> None:
            flat = wait()
            if self._foreign:
                parts = [place.of(flat) for place in self._foreign]
                torch._foreach_copy_([place.member.p for place in self._foreign], parts)

        return finish

    def _zeros(self, num_elements: int) -> Tensor:
        return torch.zeros(num_elements, device=self._places[0].member.p.device)

    def slot_names(self) -> list[str]:
        return [f"{place.member.name}/{slot}" for place in self._places for slot in MUON_SLOTS]

    def slots(self) -> Iterator[Slot]:
        for stack in self._stacks:
            yield from stack.slots()


ParamGroup = ShardedAdam | ReplicatedAdam | Matrices


def gradient(p: Tensor) -> Tensor:
    """Return a parameter's gradient, in its own dtype; zeros where there is none."""
    return torch.zeros_like(p) if p.grad is None else p.grad

"""The one loop. Stages differ in what they pass to it: batches, schedule, number of steps, hooks, where it starts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from raychat import dist
from raychat.data.batches import Batch
from raychat.model.loss import token_nll
from raychat.optim.schedule import Schedule

Hook = Callable[[int, Tensor], None]  # called after every step with the number of steps done and the step's loss, ()


class Optimizer(Protocol):
    """What the loop needs of an optimizer: it sums the gradients of all workers itself."""

    def step(self, lr: float, momentum: float, weight_decay: float) -> None: ...
    def zero_grad(self) -> None: ...


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Iterable[Batch]],
    *,
    steps: int,
    schedule: Schedule,
    hooks: Sequence[Hook] = (),
    start: int = 0,
) -> None:
    """Train from step `start` to `steps`; every worker calls it.

    Args:
        model: ids (B, T) -> logits (B, T, V).
        optimizer: given the schedule's multipliers at every step.
        batches: each `next` gives this worker's micro-batches of one step, possibly none; their weights are normalised
            over all workers, so losses and gradients are summed.
        hooks: called in order after every step, on every worker.
    """
    for step in range(start, steps):
        loss = accumulate(model, next(batches))
        optimizer.step(schedule.lr(step), schedule.momentum(step), schedule.weight_decay(step))
        optimizer.zero_grad()
        dist.sum_(loss)
        for hook in hooks:
            hook(step + 1, loss)


def accumulate(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Add the gradients of all micro-batches; return this worker's share of the step's loss, () fp32, detached."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for batch in batches:
        loss = (batch.weights * token_nll(model(batch.inputs), batch.targets)).sum()
        loss.backward()
        total += loss.detach()
    return total


def every(interval: int, steps: int, hook: Hook) -> Hook:
    """Call a hook at every `interval`-th step and at the last; 0 = at the last only."""

    def at(step: int, loss: Tensor) -> None:
        if step == steps or (interval > 0 and step % interval == 0):
            hook(step, loss)

    return at

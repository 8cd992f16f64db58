"""The one loop. Stages differ in what they pass to it: batches, schedule, number of steps, hooks, where it starts."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from raychat import dist
from raychat.data.batches import Batch, Step
from raychat.model.base import Model
from raychat.optim import Optimizer
from raychat.optim.schedule import Schedule
from raychat.train.stop import Stop, never

MAX_SKIPPED = 3  # steps in a row: one is a bad batch, several are bad weights

# From ids and targets (B, T) to `token_nll` (B, T): a model's `nll`, or that compiled.
Nll = Callable[[Tensor, Tensor], Tensor]
# Called after every step with the number of steps done, the step's loss (NaN = it was skipped), and the step.
Hook = Callable[[int, float, Step], None]
# Puts earlier weights and momenta in place, on every worker alike; tells whether there were any.
Rewind = Callable[[int], bool]


def train(
    model: Model,
    optimizer: Optimizer,
    batches: Iterator[Step],
    *,
    nll: Nll,
    steps: int,
    schedule: Schedule,
    hooks: Sequence[Hook] = (),
    start: int = 0,
    stop: Stop = never,
    rewind: Rewind = lambda number: False,
) -> int:
    """Train from step `start` to `steps`; every worker calls it. Return the number of steps done.

    A step whose loss or gradient is not finite on some worker changes nothing: all workers skip it. After three of them
    in a row, training goes on with earlier weights and the next step's data.

    Args:
        optimizer: given the schedule's multipliers at every step.
        batches: each `next` gives one step; the weights of its micro-batches are normalised over all workers, so losses
            and gradients are summed.
        nll: the model's own, or that compiled.
        hooks: called in order after every step, on every worker.
        stop: asked once a step; where it is True on some worker, all stop after the first step that is not skipped.
        rewind: called with the number of steps done, after three skipped steps in a row.

    Raises:
        FloatingPointError: Three steps in a row were skipped, and `rewind` has no other weights.
    """
    skipped = 0  # in a row
    parts = 1  # that micro-batches are cut into
    for number in range(start, steps):
        step = next(batches)
        loss, parts = accumulate_within_memory(nll, list(step.batches), optimizer, model.device, parts)
        totals = add_up(loss, model, stop)
        if totals.finite:
            optimizer.step(rate(schedule, number, step), schedule.momentum(number), schedule.weight_decay(number))
        optimizer.zero_grad()
        skipped = 0 if totals.finite else skipped + 1
        if skipped == MAX_SKIPPED:
            if not rewind(number + 1):
                raise FloatingPointError(_why(number + 1, totals))
            skipped = 0
        for hook in hooks:
            hook(number + 1, totals.loss if totals.finite else math.nan, step)
        # A skipped step is no place to stop: how many there were in a row would be forgotten.
        if totals.stops and not skipped:
            return number + 1
    return steps


def rate(schedule: Schedule, number: int, step: Step) -> float:
    """Return a step's learning rate; 0 for a step that teaches nothing.

    Its gradient is zero, but Muon would still take a full step in the direction of its momentum.
    """
    return schedule.lr(number) if step.teaches else 0.0


def accumulate(nll: Nll, batches: Iterable[Batch], device: torch.device) -> Tensor:
    """Add the gradients of all micro-batches; return this worker's share of the step's loss, () fp32, detached."""
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = (batch.weights * nll(batch.inputs, batch.targets)).sum()
        loss.backward()
        total += loss.detach()
    return total


def accumulate_within_memory(
    nll: Nll, batches: Sequence[Batch], optimizer: Optimizer, device: torch.device, parts: int
) -> tuple[Tensor, int]:
    """Do what `accumulate` does with micro-batches cut into parts, into twice as many where memory does not suffice.

    The gradients are the same sums. Workers need not agree on the parts.

    Args:
        optimizer: drops the gradients of what did not fit.
        parts: to begin with.

    Returns:
        The share of the loss, and the number of parts that fitted.

    Raises:
        torch.OutOfMemoryError: A single row does not fit.
    """
    while True:
        try:
            return accumulate(nll, chain.from_iterable(batch.cut(parts) for batch in batches), device), parts
        except torch.OutOfMemoryError:
            if parts >= max(len(batch.inputs) for batch in batches):
                raise
        # Not in the handler: until it ends, the error keeps the tensors of the failed pass.
        optimizer.zero_grad()
        torch.cuda.empty_cache()
        parts *= 2
        print(f"rank {dist.world().rank}: out of memory; micro-batches are cut into {parts} from here on", flush=True)


class Totals(NamedTuple):
    """One step, summed over the workers."""

    loss: float
    norm: float  # the workers' gradient norms
    stops: float  # workers that were asked to stop

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def add_up(loss: Tensor, model: Model, stop: Stop) -> Totals:
    """Sum this worker's share of the loss, the norm of its gradients and its wish to stop over the workers.

    With the same numbers all workers skip a step together, and stop at the same one. One sum, one wait for the device.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
    mine = torch.stack((loss, norm.to(loss), loss.new_full((), stop())))
    return Totals(*dist.sum_(mine).tolist())


def _why(number: int, totals: Totals) -> str:
    return (
        f"step {number}: the loss is {totals.loss}, the sum of the workers' gradient norms {totals.norm}; expected "
        f"finite numbers. It was skipped like the {MAX_SKIPPED - 1} steps before, and the checkpoints so far are good. "
        "Look at the data of these steps, or train a new --run with a lower learning rate"
    )


def every(interval: int, steps: int, hook: Hook) -> Hook:
    """Call a hook at the steps that are due."""

    def at(number: int, loss: float, step: Step) -> None:
        if is_due(number, interval, steps):
            hook(number, loss, step)

    return at


def is_due(number: int, interval: int, steps: int) -> bool:
    """Tell whether this is every `interval`-th step or the last of all; 0 = the last only."""
    return number == steps or (interval > 0 and number % interval == 0)

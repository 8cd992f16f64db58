"""The one loop. Stages differ in what they pass to it: batches, schedule, number of steps, hooks, where it starts."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from raychat import dist
from raychat.data.batches import Batch, Step
from raychat.model.base import Model
from raychat.optim import Optimizer
from raychat.optim.schedule import Schedule

# From ids and targets (B, T) to `token_nll` (B, T): a model's `nll`, or that compiled.
Nll = Callable[[Tensor, Tensor], Tensor]
# Called after every step with the number of steps done, the step's loss, (), and the step.
Hook = Callable[[int, Tensor, Step], None]


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
) -> None:
    """Train from step `start` to `steps`; every worker calls it.

    Args:
        optimizer: given the schedule's multipliers at every step.
        batches: each `next` gives one step; the weights of its micro-batches are normalised over all workers, so losses
            and gradients are summed.
        nll: the model's own, or that compiled.
        hooks: called in order after every step, on every worker.
    """
    for number in range(start, steps):
        step = next(batches)
        loss = accumulate(nll, step.batches, model.device)
        check_finite(number, loss, model)
        optimizer.step(rate(schedule, number, step), schedule.momentum(number), schedule.weight_decay(number))
        optimizer.zero_grad()
        for hook in hooks:
            hook(number + 1, loss, step)


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


def check_finite(number: int, loss: Tensor, model: Model) -> None:
    """Sum `loss` over the workers in place, and stop them all before a step that would ruin the weights.

    Raises:
        FloatingPointError: The loss or a gradient is NaN or infinite on some worker.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
    totals = dist.sum_(torch.stack((loss, norm.to(loss))))
    if not totals.isfinite().all():
        raise FloatingPointError(
            f"step {number + 1}: the loss is {totals[0].item()}, the sum of the workers' gradient norms "
            f"{totals[1].item()}; expected finite numbers. The weights are untouched, and the checkpoints so far are "
            "good. Look at the data of this step, or train with a lower --lr-scale"
        )
    loss.copy_(totals[0])


def every(interval: int, steps: int, hook: Hook) -> Hook:
    """Call a hook at every `interval`-th step and at the last; 0 = at the last only."""

    def at(number: int, loss: Tensor, step: Step) -> None:
        if number == steps or (interval > 0 and number % interval == 0):
            hook(number, loss, step)

    return at

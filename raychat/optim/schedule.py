"""Schedules: learning rate, Muon momentum and weight decay as pure functions of the step, so resuming needs no state.

Sources: recipe of nanochat (base, mid, SFT, RL); Muon's momentum warm-up, Jordan 2024.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

WARMUP_STEPS = 40
WARMDOWN_FRAC = 0.65  # of the base run
FINAL_LR = 0.05  # of the peak, where base ends


class Schedule(NamedTuple):
    """The multipliers of step 0, 1, ..., for `optimizer.step(lr, momentum, weight_decay)`."""

    lr: Callable[[int], float]  # times every learning rate
    momentum: Callable[[int], float]  # of Muon
    weight_decay: Callable[[int], float]  # times Muon's weight decay


def base(steps: int) -> Schedule:
    """Make the pretraining schedule.

    Learning rate: linear warm-up over 40 steps, constant, linear warm-down over the last 65% towards 5%.
    Momentum: 0.85 -> 0.97 over 400 steps, then to 0.90 across the warm-down. Weight decay: half a cosine to 0.
    In a shorter run the warm-up ends where the warm-down begins, and momentum is the lower of its two ramps.
    """
    _check(steps)
    warmdown_steps = round(WARMDOWN_FRAC * steps)
    start = steps - warmdown_steps
    warmup_steps = min(WARMUP_STEPS, start)
    return Schedule(
        lr=lambda step: min(ramp(step + 1, 0, warmup_steps, 0.0, 1.0), ramp(step, start, steps, 1.0, FINAL_LR)),
        momentum=lambda step: min(ramp(step, 0, 400, 0.85, 0.97), ramp(step, start, steps, 0.97, 0.90)),
        weight_decay=lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))),
    )


def linear_to_zero(steps: int, peak: float = 1.0, momentum: float = 0.95) -> Schedule:
    """Make a schedule that falls linearly from `peak` to 0 without weight decay: mid (peak 1.0) and RL (peak 0.05).

    Step 0 has the peak, the last step `peak / steps`. Weight decay stays at 0, where the base run's cosine ended.
    """
    _check(steps)
    return Schedule(
        lr=lambda step: ramp(step, 0, steps, peak, 0.0),
        momentum=lambda step: momentum,
        weight_decay=lambda step: 0.0,
    )


def sft(steps: int, peak: float = 0.8) -> Schedule:
    """Make the fine-tuning schedule.

    Learning rate: `peak` of base's, to 0 over the last half. Momentum: 0.85 -> 0.95 over 300 steps. No weight decay.
    """
    _check(steps)
    return Schedule(
        lr=lambda step: ramp(step, steps - steps // 2, steps, peak, 0.0),
        momentum=lambda step: ramp(step, 0, 300, 0.85, 0.95),
        weight_decay=lambda step: 0.0,
    )


def cosine(steps: int, *, warmup_steps: int = 2000, final: float = 0.1) -> Schedule:
    """Make nanoGPT's schedule: linear warm-up, then half a cosine towards `final` of the peak.

    Momentum and weight decay are those of Muon, which GPT-2 does not use.
    """
    _check(steps)
    warmup_steps = min(warmup_steps, steps - 1)

    def lr(step: int) -> float:
        decayed = 0.5 * (1 + math.cos(math.pi * ramp(step, warmup_steps, steps, 0.0, 1.0)))
        return ramp(step + 1, 0, warmup_steps + 1, 0.0, 1.0) * (final + (1 - final) * decayed)

    return Schedule(lr=lr, momentum=lambda step: 0.95, weight_decay=lambda step: 1.0)


def warmed_up(schedule: Callable[[int], Schedule], steps: int) -> Schedule:
    """Make a schedule that begins with a linear warm-up over 40 steps, for momenta that begin at 0."""
    planned, warmup_steps = schedule(steps), min(WARMUP_STEPS, steps // 2)
    return planned._replace(lr=lambda step: planned.lr(step) * ramp(step + 1, 0, warmup_steps, 0.0, 1.0))


def ramp(step: float, start: float, stop: float, first: float, last: float) -> float:
    """Interpolate linearly from `first` (at and before `start`) to `last` (at and after `stop`).

    >>> [ramp(step, 10, 20, 1.0, 0.0) for step in (0, 10, 15, 20, 99)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if step >= stop:
        return last
    if step <= start:
        return first
    frac = (step - start) / (stop - start)
    return (1 - frac) * first + frac * last


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got steps={steps}")

"""Figures of several tasks from the outcomes of their items, and how sure they are."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from raychat.intervals import Draws, draws_of_mean, interval

Number = TypeVar("Number", float, Draws)


def centred(accuracy: Number, chance: float) -> Number:
    """Scale an accuracy so that guessing is 0 and perfection 1.

    >>> round(centred(0.625, 0.25), 6)
    0.5
    """
    return (accuracy - chance) / (1 - chance)


def mean(outcomes: Sequence[float]) -> float:
    """Return the mean outcome, which for right (1) and wrong (0) is the accuracy."""
    return sum(outcomes) / len(outcomes)


def figures(name: str, outcomes: Mapping[str, Sequence[float]], chances: Mapping[str, float]) -> dict[str, Any]:
    """Return the mean centred accuracy of the tasks as `name`, `outcomes`, and `interval` of each task and of `name`.

    Args:
        outcomes: by task, 0 to 1 for each of its items.
        chances: by task, the expected outcome of a blind guess.
    """
    draws = {task: draws_of_mean(of_task, seed=zlib.crc32(task.encode())) for task, of_task in outcomes.items()}
    together = np.mean([centred(of_task, chances[task]) for task, of_task in draws.items()], axis=0)
    return {
        name: mean([centred(mean(of_task), chances[task]) for task, of_task in outcomes.items()]),
        "outcomes": {task: list(of_task) for task, of_task in outcomes.items()},
        "interval": {key: list(interval(of_key)) for key, of_key in {**draws, name: together}.items()},
    }


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate without bias how likely at least one of `k` samples is right, from `num_right` of `num_samples`.

    Source: Chen et al., arXiv:2107.03374, equation 1.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def pass_rates(num_samples: int, right: Sequence[int]) -> dict[str, list[float]]:
    """Return each problem's pass@k, for k = 1, 2, 4, ... and all samples. right: samples of each that are."""
    ks = sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})
    return {str(k): [pass_at_k(num_samples, c, k) for c in right] for k in ks}


def between(found: Mapping[str, Any], name: str) -> str:
    """Return the interval of a figure as text to put behind it; empty in an eval.json that has none.

    >>> between({"interval": {"core": [0.1, 0.25]}}, "core")
    ' [0.1000, 0.2500]'
    """
    low_high = found.get("interval", {}).get(name)
    return f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""


def details(found: Mapping[str, Any]) -> list[str]:
    """Return lines about pass@k, guards, contamination and time, as far as an eval.json has them."""
    lines = [
        f"  {task:20} "
        + "  ".join(f"pass@{k} {rate:.4f}{between(found, f'{task} pass@{k}')}" for k, rate in rates.items())
        for task, rates in found.get("pass_at_k", {}).items()
    ]
    lines += [f"  {task:20} programs ran under {', '.join(names)}" for task, names in found.get("guards", {}).items()]
    for task, of_task in found.get("contamination", {}).items():
        clean = of_task["clean_accuracy"]
        rest = f"; {clean:.4f}{between(of_task, 'clean_accuracy')} on the others" if clean is not None else ""
        lines.append(f"  {task:20} {of_task['hits']} of {of_task['checked']} items are in the training text{rest}")
    if "seconds" in found:
        lines.append("  seconds: " + "; ".join(f"{part} {seconds:.1f}" for part, seconds in found["seconds"].items()))
    return lines

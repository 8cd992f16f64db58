"""Limits of settings, checked when a job's settings are made: a run must not find a wrong one after hours."""

import math
import operator
from collections.abc import Callable, Mapping

MAX_SEED = 2**63 - 1  # PyTorch's generators take 64 bits


def at_least(settings: object, *, flags: str = "--", **limits: float) -> None:
    """Check that settings, or all numbers of one that is a tuple, are finite and not below their limits.

    Args:
        settings: has the names of the limits as attributes; None needs no check, an empty tuple is refused.
        flags: what stands before the names on the command line.

    Raises:
        ValueError: A setting is below its limit, infinite or NaN.

    >>> from types import SimpleNamespace
    >>> at_least(SimpleNamespace(steps=None, batch_sizes=(4, 0)), steps=1, batch_sizes=1)
    Traceback (most recent call last):
    ValueError: --batch-sizes is (4, 0); expected 1 or more
    """
    _check(settings, limits, operator.ge, flags, "{} or more")


def above(settings: object, **limits: float) -> None:
    """Check like `at_least` that settings are more than their limits."""
    _check(settings, limits, operator.gt, "--", "more than {}")


def at_most(settings: object, **limits: float) -> None:
    """Check like `at_least` that settings are not above their limits."""
    _check(settings, limits, operator.le, "--", "{} or less")


def _check(
    settings: object, limits: Mapping[str, float], holds: Callable[[float, float], bool], flags: str, expected: str
) -> None:
    for name, limit in limits.items():
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if value is not None and not (numbers and all(holds(n, limit) and n < math.inf for n in numbers)):
            flag = flags + name.replace("_", "-")
            raise ValueError(f"{flag} is {value}; expected {expected.format(limit)}")

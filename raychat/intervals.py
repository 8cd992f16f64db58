"""Confidence intervals of figures that are means over items, by the bootstrap (Efron 1979).

Draw the items with replacement, many times, and compute the figure from each draw: the middle 95% of these figures are
the interval. A figure made of several means is computed from their draws, element by element.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
CONFIDENCE = 0.95
AT_ONCE = 1 << 20  # items drawn at a time, so that a million outcomes do not take the memory of all draws

Draws = NDArray[np.float64]  # (DRAWS,): the figure in each draw


def draws_of_mean(outcomes: Sequence[float], seed: int = 0) -> Draws:
    """Return the mean of `outcomes` in each draw. The same seed and number of outcomes draw the same items.

    So the difference of two results on the same items is that of their draws: a paired bootstrap. Where all items are
    right (1) or all are wrong (0), drawing them says nothing: the draws are then of a share with one more right and one
    more wrong item (Laplace's rule of succession).

    Raises:
        ValueError: there are no outcomes.
    """
    if not outcomes:
        raise ValueError("an interval needs at least one outcome, got none")
    values, rng = np.asarray(outcomes, dtype=np.float64), np.random.default_rng(seed)
    if (values == 0).all() or (values == 1).all():
        return rng.binomial(len(values), (values.sum() + 1) / (len(values) + 2), size=DRAWS) / len(values)
    means, rows = [], max(1, AT_ONCE // len(values))
    for start in range(0, DRAWS, rows):
        drawn = rng.integers(len(values), size=(min(rows, DRAWS - start), len(values)))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)


def draws_of_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Draws:
    """Return the sum of the numerators over that of the denominators of the same items, in each draw of the items."""
    return draws_of_mean(numerators, seed) / draws_of_mean(denominators, seed)


def interval(draws: Draws) -> tuple[float, float]:
    """Return the lower and the upper end of the figure's interval.

    >>> interval(draws_of_mean([1.0, 0.0] * 50))
    (0.4, 0.6)
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)

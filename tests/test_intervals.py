"""Intervals of means."""

import numpy as np
import pytest

from raychat.intervals import draws_of_mean, interval


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    outcomes = [1.0] * 300 + [0.0] * 700
    low, high = interval(draws_of_mean(outcomes))
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(40):
        low, high = interval(draws_of_mean([float(x) for x in rng.random(80) < 0.6], seed))
        covered += low <= 0.6 <= high
    assert 34 <= covered <= 40


def test_paired_draws_take_the_same_items() -> None:
    rng = np.random.default_rng(2)
    first = [float(x) for x in rng.random(200) < 0.5]
    second = [x if i % 10 else 1.0 for i, x in enumerate(first)]  # better on a tenth of the items, worse on none
    low, _ = interval(draws_of_mean(second) - draws_of_mean(first))
    assert low > 0
    unpaired_low, _ = interval(draws_of_mean(second, seed=1) - draws_of_mean(first))
    assert unpaired_low < low


def test_no_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one outcome"):
        draws_of_mean([])


@pytest.mark.parametrize("outcome", [0.0, 1.0])
@pytest.mark.parametrize("num", [1, 20, 1000])
def test_all_right_or_all_wrong_is_not_certain(outcome: float, num: int) -> None:
    """About as wide as Wilson's interval, whose other end is at z^2 / (n + z^2)."""
    low, high = interval(draws_of_mean([outcome] * num))
    assert low <= outcome <= high
    wilson = 1.96**2 / (num + 1.96**2)
    assert 0.6 * wilson < high - low <= 1.3 * wilson

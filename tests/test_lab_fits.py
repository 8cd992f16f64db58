"""Fits against laws that are known: exponents, minima, distances, and intervals that hold the truth."""

import math

import numpy as np
import pytest

from raychat.lab import fits
from raychat.lab.fits import Trial

COMPUTE = (1e11, 4e11, 2e12, 9e12)


def ladder(scale: float = 20.0, exponent: float = 0.1, noise: float = 0.0, seeds: int = 1, rng: int = 0) -> list[Trial]:
    draw = np.random.default_rng(rng)
    losses = [
        (i, c, scale * c**-exponent * math.exp(noise * draw.normal()))
        for i, c in enumerate(COMPUTE)
        for _ in range(seeds)
    ]
    return [Trial(f"d{i}", c, loss) for i, c, loss in losses]


def test_power_law_is_found() -> None:
    law = fits.power_law(ladder(20.0, 0.1))
    assert (law.scale, law.exponent) == (pytest.approx(20.0), pytest.approx(0.1))
    assert law.r2 == pytest.approx(1.0)
    assert law.worst == pytest.approx(0.0, abs=1e-9)
    assert law.exponent_interval == pytest.approx((0.1, 0.1))
    assert law.at(4e11) == pytest.approx(20.0 * 4e11**-0.1)


def test_law_says_how_far_it_is_off() -> None:
    trials = ladder()
    trials[1] = trials[1]._replace(loss=trials[1].loss * 1.2)
    law = fits.power_law(trials)
    assert 0.5 < law.r2 < 0.99
    assert law.worst == pytest.approx(max(abs(t.loss / law.at(t.compute) - 1) for t in trials))
    assert 0.05 < law.worst < 0.2


def test_interval_of_the_exponent_holds_the_truth() -> None:
    """It is a 95% interval of few rungs: somewhat narrow, but most hold the true exponent."""
    ends = [fits.power_law(ladder(noise=0.02, seeds=3, rng=i)).exponent_interval for i in range(20)]
    assert sum(low <= 0.1 <= high for low, high in ends if low is not None) >= 12


@pytest.mark.parametrize("worth", [0.5, 1.0, 3.0])
def test_multiplier_is_the_horizontal_distance(worth: float) -> None:
    """A series whose runs reach with C FLOPs what the first one reaches with worth * C."""
    first = ladder(20.0, 0.1)
    other = [t._replace(loss=20.0 * (worth * t.compute) ** -0.1) for t in first]
    found = fits.multiplier(first, other)
    assert found.value == pytest.approx(worth)
    assert found.interval == pytest.approx((worth, worth))
    assert found.exponent == pytest.approx(0.1)


def test_rungs_are_drawn_together() -> None:
    """A rung that is off in both series alike says nothing against the multiplier."""
    bump = (1.0, 1.05, 0.97, 1.02)
    first = [t._replace(loss=t.loss * b) for t, b in zip(ladder(), bump, strict=True)]
    other = [t._replace(loss=t.loss * 2**-0.1) for t in first]
    together = fits.multiplier(first, other).interval
    apart = fits.multiplier(first, [t._replace(rung=f"other {t.rung}") for t in other]).interval
    assert together is not None
    assert apart is not None
    assert math.log(together[1] / together[0]) < 0.7 * math.log(apart[1] / apart[0])


def test_two_rungs_have_no_interval() -> None:
    assert fits.power_law(ladder()[:2]).exponent_interval is None
    assert fits.multiplier(ladder()[:2], ladder()[:2]).interval is None


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="two different amounts of compute"):
        fits.power_law(ladder()[:1] * 2)
    with pytest.raises(ValueError, match="losses above 0"):
        fits.power_law([Trial("a", 1.0, 0.0), Trial("b", 2.0, 1.0)])
    with pytest.raises(ValueError, match="does not fall"):
        fits.multiplier(ladder(exponent=-0.1), ladder(exponent=-0.1))


def test_trend_takes_figures_below_zero() -> None:
    found = fits.trend([Trial("", 10.0**i, -0.1 + 0.05 * i) for i in range(4)])
    assert (found.start, found.per_decade, found.r2) == (pytest.approx(-0.1), pytest.approx(0.05), pytest.approx(1.0))
    assert found.at(1e5) == pytest.approx(0.15)


def test_minimum_of_a_parabola() -> None:
    points = [(n, 2.0 + 0.3 * math.log(n / 4e5) ** 2) for n in (1e5, 3e5, 1e6)]
    found = fits.parabola_minimum(points)
    assert found == (pytest.approx(4e5), pytest.approx(2.0))


@pytest.mark.parametrize(
    "points",
    [
        [(1e5, 3.0), (2e5, 2.0)],
        [(1e5, 3.0), (2e5, 2.5), (4e5, 2.1)],
        [(1e5, 2.0), (2e5, 2.5), (4e5, 2.1)],
    ],
    ids=["two", "the largest is the best", "bends downwards"],
)
def test_no_minimum_among_these(points: list[tuple[float, float]]) -> None:
    assert fits.parabola_minimum(points) is None

"""Laws fitted to a series of runs: a power law, a parabola's minimum, the horizontal distance of two series."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from raychat.intervals import DRAWS, interval

LEAST_DRAWS = 0.5  # share of the draws that must allow a fit, or there is no interval


class Trial(NamedTuple):
    """One run of a series, as a fit sees it."""

    rung: str  # runs of one rung differ in their seed alone
    compute: float  # FLOPs
    loss: float  # or another figure


class PowerLaw(NamedTuple):
    """loss = scale * compute ** -exponent."""

    scale: float
    exponent: float
    r2: float  # share of log loss's variance that the law explains
    worst: float  # largest relative deviation of a run from the law
    exponent_interval: tuple[float, float] | None  # None = too few rungs to say

    def at(self, compute: float) -> float:
        """Return what the fit says of an amount of compute."""
        return float(self.scale * compute**-self.exponent)


class Trend(NamedTuple):
    """figure = start + per_decade * log10(compute)."""

    start: float
    per_decade: float
    r2: float

    def at(self, compute: float) -> float:
        """Return what the fit says of an amount of compute."""
        return self.start + self.per_decade * math.log10(compute)


class Multiplier(NamedTuple):
    """How many times the compute of the first series the other one is worth, at equal loss."""

    value: float
    interval: tuple[float, float] | None  # None = too few rungs to say
    exponent: float  # of both


def power_law(trials: Sequence[Trial]) -> PowerLaw:
    """Fit a power law by least squares in logarithms. Its interval: rungs and their seeds drawn anew (bootstrap).

    Three runs do not tell an irreducible loss E from the exponent, so E is left out: the law holds within the range of
    the runs, and its exponent grows less steep beyond.

    Raises:
        ValueError: there are less than two different amounts of compute, or a loss is not positive.
    """
    _check(trials)
    slope, start, r2 = _line([math.log(t.compute) for t in trials], [math.log(t.loss) for t in trials])
    scale = math.exp(start)
    worst = max(abs(t.loss / (scale * t.compute**slope) - 1) for t in trials)
    ends = _bootstrap([trials], lambda drawn: -_shared_slope(drawn))
    return PowerLaw(scale, -slope, r2, worst, ends)


def trend(trials: Sequence[Trial]) -> Trend:
    """Fit a figure that may be zero or negative, as CORE, by a line over the logarithm of compute."""
    _check(trials, positive=False)
    slope, start, r2 = _line([math.log10(t.compute) for t in trials], [t.loss for t in trials])
    return Trend(start, slope, r2)


def multiplier(first: Sequence[Trial], other: Sequence[Trial]) -> Multiplier:
    """Return the horizontal distance of two power laws with one exponent: above 1, `other` needs less compute.

    The exponent is shared, so the distance is the same at every loss. Where both have the same rungs, a draw of the
    bootstrap takes the same ones of both.

    Raises:
        ValueError: a series cannot be fitted, or the loss does not fall with compute.
    """
    _check(first)
    _check(other)
    if _shared_slope([first, other]) >= 0:
        raise ValueError("the loss does not fall with compute: there is no compute multiplier")
    value = _distance([first, other])
    return Multiplier(value, _bootstrap([first, other], _distance), -_shared_slope([first, other]))


def parabola_minimum(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return where a parabola in log x through points (x, loss) has its minimum, and the loss there.

    None where the points (three at least) bend downwards, or the minimum lies outside of them: the best size is then
    not among those that were tried.
    """
    if len({x for x, _ in points}) < 3:
        return None
    xs, ys = np.log([x for x, _ in points]), np.array([y for _, y in points])
    middle = xs.mean()
    a, b, c = np.polyfit(xs - middle, ys, 2)
    if a <= 0 or not xs.min() <= (best := middle - b / (2 * a)) <= xs.max():
        return None
    return float(math.exp(best)), float(c - b * b / (4 * a))


def _check(trials: Sequence[Trial], positive: bool = True) -> None:
    if len({t.compute for t in trials}) < 2:
        raise ValueError(f"a fit needs runs of two different amounts of compute at least, got {len(trials)} run(s)")
    if positive and not all(t.loss > 0 for t in trials):
        raise ValueError(f"a power law needs losses above 0, got {min(t.loss for t in trials)}")


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Return slope, start and R2 of the line of least squares."""
    x, y = np.array(xs), np.array(ys)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    start = float(y.mean() - slope * x.mean())
    spread = float(((y - y.mean()) ** 2).sum())
    return slope, start, 1 - float(((y - start - slope * x) ** 2).sum()) / spread if spread else 1.0


def _logs(trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    return np.log([t.compute for t in trials]), np.log([t.loss for t in trials])


def _shared_slope(series: Sequence[Sequence[Trial]]) -> float:
    """Return the slope of parallel lines in logarithms, one for each series; NaN where compute does not vary."""
    over = under = 0.0
    for x, y in map(_logs, series):
        over += float(((x - x.mean()) * (y - y.mean())).sum())
        under += float(((x - x.mean()) ** 2).sum())
    return over / under if under > 1e-12 else math.nan


def _distance(series: Sequence[Sequence[Trial]]) -> float:
    """Return exp of the horizontal distance of the two parallel lines; NaN where they do not fall."""
    slope = _shared_slope(series)
    if not slope < 0:
        return math.nan
    (x0, y0), (x1, y1) = map(_logs, series)
    return math.exp(((y0.mean() - slope * x0.mean()) - (y1.mean() - slope * x1.mean())) / -slope)


def _bootstrap(
    series: Sequence[Sequence[Trial]], figure: Callable[[Sequence[Sequence[Trial]]], float]
) -> tuple[float, float] | None:
    """Return the interval of a figure when rungs, and the seeds within them, are drawn anew; None = too few rungs."""
    rng = np.random.default_rng(0)
    rungs = [list(dict.fromkeys(t.rung for t in trials)) for trials in series]
    by_rung = [
        {rung: [t for t in trials if t.rung == rung] for rung in names}
        for trials, names in zip(series, rungs, strict=True)
    ]
    if min(map(len, rungs)) < 3:
        return None
    same = all(set(names) == set(rungs[0]) for names in rungs)
    found = []
    for _ in range(DRAWS):
        picked = [rungs[0][i] for i in rng.integers(len(rungs[0]), size=len(rungs[0]))]
        drawn = []
        for names, trials in zip(rungs, by_rung, strict=True):
            chosen = picked if same else [names[i] for i in rng.integers(len(names), size=len(names))]
            drawn.append([t for rung in chosen for t in _seeds(trials[rung], rng)])
        found.append(figure(drawn))
    values = np.array([value for value in found if math.isfinite(value)])
    return interval(values) if len(values) >= LEAST_DRAWS * DRAWS else None


def _seeds(trials: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    """Draw the seeds of a rung with replacement."""
    return [trials[i] for i in rng.integers(len(trials), size=len(trials))]

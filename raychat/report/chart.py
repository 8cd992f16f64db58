"""Line charts as SVG that needs nothing else: panels below each other over one x axis, readable in light and dark."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Literal, NamedTuple

Point = tuple[float, float]
MARGIN_LEFT, MARGIN_RIGHT, TITLE, GAP, FOOT, LETTER, BANDS = 48, 14, 26, 16, 34, 6.4, 20  # pixels
NUM_COLOURS = 6  # of chart.css


class Line(NamedTuple):
    """Points that belong together."""

    points: Sequence[Point]
    colour: int  # number of the palette's colour
    label: str = ""  # in the panel's legend
    kind: Literal["line", "faint", "dashed", "dots", "both"] = "line"  # both: a line and its points
    bars: Sequence[Point] = ()  # lower and upper end of the interval of each point


class Panel(NamedTuple):
    """One y axis."""

    title: str
    lines: Sequence[Line]
    log: bool = False


class Axis(NamedTuple):
    """The x axis of all panels."""

    title: str = ""
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None  # None = chosen
    bands: Sequence[tuple[float, float, str]] = ()  # from, to, label: parts of the axis, every second one tinted


class _Scale(NamedTuple):
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return self.start + (value - low) / ((high - low) or 1.0) * (self.stop - self.start)


def draw(panels: Sequence[Panel], axis: Axis, *, width: int = 960, height: int = 130) -> str:
    """Return panels below each other as one SVG picture. height: of one panel, without its title.

    On a logarithmic axis, points that are not positive are left out.
    """
    panels = [_drawable(panel, axis) for panel in panels]
    xs = [x for panel in panels for line in panel.lines for x, _ in line.points]
    ends = [end for start, stop, _ in axis.bands for end in (start, stop)]
    pad = 0.0 if axis.bands or axis.log else (max(xs) - min(xs)) * 0.02 or 0.5
    factor = 1.12 if axis.log else 1.0
    x = _Scale(
        min([*xs, *ends]) / factor - pad,
        max([*xs, *ends]) * factor + pad,
        MARGIN_LEFT,
        width - MARGIN_RIGHT,
        axis.log,
    )
    style = (resources.files("raychat.report") / "chart.css").read_text(encoding="utf-8")
    top, parts = (BANDS if axis.bands else 0.0), [f"<style>{style}</style>"]
    for start, stop, label in axis.bands:
        parts.append(f'<text class="mid" x="{x((start + stop) / 2):.1f}" y="13">{escape(label)}</text>')
    for panel in panels:
        top += TITLE
        parts += _panel(panel, axis, x, top, height)
        top += height + GAP
    ticks = axis.ticks if axis.ticks is not None else [(t, short(t)) for t in _ticks(x.low, x.high, axis.log, 6)]
    bottom, left = top - GAP, float(width)
    for at, label in reversed(ticks):  # the last one stays; those without room before it are left out
        anchor, half = ("end", LETTER * len(label)) if x(at) > width - 50 else ("mid", LETTER * len(label) / 2)
        if x(at) + (0 if anchor == "end" else half) < left:
            parts.append(f'<text class="{anchor}" x="{x(at):.1f}" y="{bottom + 15:.1f}">{escape(label)}</text>')
            left = x(at) - half - LETTER
    parts.append(f'<text class="end" x="{x.stop:.1f}" y="{bottom + 30:.1f}">{escape(axis.title)}</text>')
    total = bottom + FOOT
    titles = escape("; ".join(panel.title for panel in panels))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {total:.0f}" width="{width}"'
    return f'{head} role="img" aria-label="{titles}">' + "".join(parts) + "</svg>"


def _drawable(panel: Panel, axis: Axis) -> Panel:
    """Return a panel without the points that a logarithmic axis has no place for, and without empty lines."""
    lines = []
    for line in panel.lines:
        bars: Sequence[Point | None] = line.bars or [None] * len(line.points)
        kept = [
            (point, bar)
            for point, bar in zip(line.points, bars, strict=True)
            if all(map(math.isfinite, point)) and (point[0] > 0 or not axis.log) and (point[1] > 0 or not panel.log)
        ]
        if kept:
            points = [point for point, _ in kept]
            lines.append(line._replace(points=points, bars=[bar for _, bar in kept if bar]))
    return panel._replace(lines=lines)


def _panel(panel: Panel, axis: Axis, x: _Scale, top: float, height: float) -> Iterable[str]:
    values = [y for line in panel.lines for _, y in line.points]
    values += [end for line in panel.lines for bar in line.bars for end in bar if end > 0 or not panel.log]
    low, high = min(values), max(values)
    if not panel.log:
        pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
        low, high = low - pad, high + pad
    elif low == high:
        low, high = low / 1.1, high * 1.1
    y = _Scale(low, high, top + height, top, panel.log)
    for start, stop, _ in axis.bands[::2]:
        size = f'width="{x(stop) - x(start):.1f}" height="{height}"'
        yield f'<rect class="band" x="{x(start):.1f}" y="{top:.1f}" {size}/>'
    for tick in _ticks(low, high, panel.log, max(2, int(height / 34))):
        yield f'<path class="rule" d="M{x.start:.1f} {y(tick):.1f}H{x.stop:.1f}"/>'
        yield f'<text class="end" x="{x.start - 7:.1f}" y="{y(tick) + 4:.1f}">{short(tick)}</text>'
    yield from _legend(panel, x, top - 9)
    for line in panel.lines:
        yield from _line(line, x, y)


def _legend(panel: Panel, x: _Scale, at: float) -> Iterable[str]:
    """Write the title, and behind it the labels in the colours of their lines."""
    yield f'<text class="title" x="{x.start:.1f}" y="{at:.1f}">{escape(panel.title)}</text>'
    left = x.start + 7.6 * len(panel.title) + 14
    for label, colour in dict.fromkeys((line.label, line.colour) for line in panel.lines if line.label):
        yield f'<text class="f{colour % NUM_COLOURS}" x="{left:.1f}" y="{at:.1f}">{escape(label)}</text>'
        left += LETTER * len(label) + 14


def _line(line: Line, x: _Scale, y: _Scale) -> Iterable[str]:
    colour = line.colour % NUM_COLOURS
    for (at, _), (low, high) in zip(line.points, line.bars, strict=False):
        ends = (y(max(low, y.low)), y(max(high, y.low)))
        yield f'<path class="k{colour}" d="M{x(at):.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>'
    if line.kind != "dots":
        kind = line.kind if line.kind in ("faint", "dashed") else "solid"
        points = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.points)
        yield f'<path class="k{colour} {kind}" d="M{points}"/>'
    if line.kind in ("dots", "both") or len(line.points) == 1:
        yield from (f'<circle class="f{colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in line.points)


def _ticks(low: float, high: float, log: bool, most: int) -> list[float]:
    """Return round numbers in a range, `most` at most.

    >>> _ticks(0, 1, False, 4), _ticks(0.9, 120, True, 4)
    ([0.0, 0.5, 1.0], [1, 10, 100])
    """
    if log and high / low >= 8:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10**e if e >= 0 else d / 10**-e for e in exponents for d in digits]
            found = [tick for tick in found if low <= tick <= high]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]
    if low == high:
        return [low]
    size = 10.0 ** math.floor(math.log10(high - low))
    for step in (size * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(n * step, 12) for n in range(first, last + 1)]
    return []


def short(value: float) -> str:
    """Return a number in few characters.

    >>> short(0.25), short(1500), short(2e12)
    ('0.25', '1,500', '2e12')
    """
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:,.6g}" if abs(value) >= 1000 else f"{value:.4g}"


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """Return every n-th point, and the last one: `most` + 1 at most."""
    stride = -(-len(points) // most) or 1
    return points if stride == 1 else [*points[::stride], points[-1]]


def smooth(points: Sequence[Point], span: int) -> list[Point]:
    """Return the exponential running mean of y over about `span` points, without bias at the start."""
    decay, total, weight, made = 1 - 1 / span, 0.0, 0.0, []
    for at, value in points:
        total, weight = decay * total + value, decay * weight + 1
        made.append((at, total / weight))
    return made

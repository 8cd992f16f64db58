"""What a series of runs shows, and two series beside each other: the sections of their reports."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from raychat.lab import fits
from raychat.lab.fits import PowerLaw, Trial
from raychat.lab.series import Measured, Series
from raychat.report.blocks import Block, Highlights, Note, Picture, Section, Table
from raychat.report.chart import Axis, Line, Panel, draw
from raychat.report.tables import ABSENT, duration, number

CURVE_POINTS = 40
FLOPS = Axis("FLOPs of training", log=True)


def heading(series: Series) -> tuple[str, str]:
    """Return the title and a sentence about a series."""
    missing = f"; not finished: {', '.join(rung.run for rung in series.missing)}" if series.missing else ""
    total = duration(sum(m.wall_s for m in series.measured))
    return f"{series.name}: a series of runs", f"{len(series.measured)} runs, {total} of training{missing}."


def sections(series: Series) -> list[Section]:
    """Return the report of a series: the law, the picture, the rungs, the seeds' noise, and the best sizes."""
    law = law_of(series)
    parts = [
        Section("In short", _in_short(series, law)),
        Section("Bits per byte and CORE against compute", _pictures([series])),
        Section("Rungs", [rungs_of(series)]),
        Section("The same run with other seeds", _noise(series)),
        Section("The best size for a budget", _isoflop(series)),
    ]
    return [part for part in parts if part.blocks]


def comparison(first: Series, others: Sequence[Series]) -> list[Section]:
    """Return the report of several series: what the others are worth in compute of the first."""
    header = ["series", "exponent", "compute multiplier", "R²", "rungs"]
    rows = [_against(first, series) for series in (first, *others)]
    note = (
        f"The compute multiplier says how many times the FLOPs {first.name} needs for the same bits per byte: above 1 "
        "is better. It is the horizontal distance of two power laws with one exponent. In brackets: where 95% of the "
        "results lie when the rungs and their seeds are drawn anew (bootstrap); few rungs give a rough guide."
    )
    parts = [
        Section("Compute multiplier", [Table("Compute multiplier", header, rows, note)]),
        Section("Curves", _pictures([first, *others])),
        Section("Rung by rung", [_side_by_side([first, *others])]),
        Section("Settings that differ", _settings([first, *others])),
    ]
    return [part for part in parts if part.blocks]


def trials(series: Series, figure: Callable[[Measured], float | None] = lambda m: m.val_bpb) -> list[Trial]:
    """Return what a law is fitted to: all runs, or with budgets the best run of each."""
    measured = list(series.measured)
    if any(m.rung.budget for m in measured):
        budgets = dict.fromkeys(m.rung.budget for m in measured)
        measured = [min((m for m in measured if m.rung.budget == b), key=lambda m: m.val_bpb) for b in budgets]
    found = [(m, figure(m)) for m in measured]
    return [Trial(_key(m), m.flops, value) for m, value in found if value is not None]


def law_of(series: Series) -> PowerLaw | None:
    """Return the power law of a series; None where it has too few runs for one."""
    found = trials(series)
    return fits.power_law(found) if len({t.compute for t in found}) > 1 else None


def _key(m: Measured) -> str:
    return m.rung.label if m.rung.budget is None else f"{m.rung.budget:.3g} FLOPs"


def _in_short(series: Series, law: PowerLaw | None) -> list[Block]:
    if law is None:
        return [Note("A law needs runs of two different amounts of compute at least.")]
    ends = law.exponent_interval
    within = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    found = [
        (f"{law.exponent:.3f}{within}", "exponent: bits per byte fall as FLOPs to minus this"),
        (f"{1 - 10**-law.exponent:.1%}", "fewer bits per byte with ten times the FLOPs"),
        (f"{law.r2:.4f}", f"R² of the law; the farthest run is {law.worst:.1%} off"),
    ]
    note = (
        f"bpb = {law.scale:.4g} x FLOPs^-{law.exponent:.4f}, fitted to {len(trials(series))} runs by least squares in "
        "logarithms, without an irreducible part: it holds within the range of these runs."
    )
    return [Highlights(found), Note(note)]


def _pictures(several: Sequence[Series]) -> list[Block]:
    """Return bits per byte (with the laws) and CORE (with lines) over compute, a colour for each series."""
    bpb, core = [], list[Line]()
    for colour, series in enumerate(several):
        label = series.name if len(several) > 1 else ""
        bpb.append(Line([(m.flops, m.val_bpb) for m in series.measured], colour, label, "dots"))
        if (law := law_of(series)) is not None:
            bpb.append(_curve(series, law.at, colour))
        scored = [m for m in series.measured if m.core is not None]
        core.append(Line([(m.flops, m.core) for m in scored if m.core is not None], colour, label, "dots"))
        found = trials(series, lambda m: m.core)
        if len({t.compute for t in found}) > 1:
            core.append(_curve(series, fits.trend(found).at, colour))
    panels = [Panel("bits per byte, and power laws", bpb, log=True), Panel("CORE, and lines over log FLOPs", core)]
    panels = [panel for panel in panels if any(line.points for line in panel.lines)]
    return [Picture("compute", partial(_sized, panels, FLOPS))] if panels else []


def _sized(panels: Sequence[Panel], axis: Axis, width: int) -> str:
    return draw(panels, axis, width=width, height=230 if width > 500 else 170)


def _curve(series: Series, law: Callable[[float], float], colour: int) -> Line:
    flops = [m.flops for m in series.measured]
    return Line([(x, law(x)) for x in np.geomspace(min(flops), max(flops), CURVE_POINTS)], colour, kind="dashed")


def rungs_of(series: Series) -> Table:
    """Return what each rung is and has measured, the least compute first."""
    header = ["run", "parameters", "tokens", "FLOPs", "val bpb", "CORE", "training"]
    rows = [
        [m.rung.run, f"{m.params:,}", f"{m.tokens:,}", f"{m.flops:.3g}", *_scores(m)]
        for m in sorted(series.measured, key=lambda m: (m.flops, m.params, m.rung.seed))
    ]
    return Table("Rungs", header, rows, "Parameters: the blocks' matrices and the head, which scaling laws count.")


def _scores(m: Measured) -> list[str]:
    return [number(m.val_bpb), number(m.core), duration(m.wall_s)]


def _noise(series: Series) -> list[Block]:
    """Return mean and standard deviation of the rungs that were trained with several seeds."""
    groups: dict[tuple[str, float | None], list[Measured]] = {}
    for m in series.measured:
        groups.setdefault((m.rung.label, m.rung.budget), []).append(m)
    rows = []
    for (label, budget), group in groups.items():
        if len(group) > 1:
            cores = [m.core for m in group if m.core is not None]
            core = f"{statistics.fmean(cores):.4f} ± {statistics.stdev(cores):.4f}" if len(cores) > 1 else number(None)
            bpbs = [m.val_bpb for m in group]
            name = label if budget is None else f"{label}, {budget:.3g} FLOPs"
            rows.append([name, str(len(group)), f"{statistics.fmean(bpbs):.4f} ± {statistics.stdev(bpbs):.4f}", core])
    note = "Mean and standard deviation: a difference within it is noise."
    return [Table("Seeds", ["rung", "seeds", "val bpb", "CORE"], rows, note)] if rows else []


def _isoflop(series: Series) -> list[Block]:
    """Return, for each budget of FLOPs, the parabola over model sizes and its minimum."""
    budgets = sorted({m.rung.budget for m in series.measured if m.rung.budget is not None})
    lines, rows, best = list[Line](), list[list[str]](), list[Trial]()
    for colour, budget in enumerate(budgets):
        group = sorted((m for m in series.measured if m.rung.budget == budget), key=lambda m: m.params)
        lines.append(Line([(m.params, m.val_bpb) for m in group], colour, f"{budget:.3g} FLOPs", "both"))
        minimum = fits.parabola_minimum([(m.params, m.val_bpb) for m in group])
        if minimum is None:
            edge = min(group, key=lambda m: m.val_bpb)
            at_the_edge = f"not among these; {edge.rung.label} is the best"
            rows.append([f"{budget:.3g}", at_the_edge, "-", "-", number(edge.val_bpb)])
            continue
        params, loss = minimum
        sizes = [math.log(m.params) for m in group]
        tokens = math.exp(np.interp(math.log(params), sizes, [math.log(m.tokens) for m in group]))
        best.append(Trial(f"{budget:g}", budget, params))
        rows.append([f"{budget:.3g}", f"{params:,.0f}", f"{tokens:,.0f}", f"{tokens / params:.2f}", number(loss)])
    if not budgets:
        return []
    header = ["FLOPs", "best parameters", "tokens", "tokens per parameter", "val bpb"]
    note = "The minimum of a parabola in the logarithm of the parameters."
    if len(best) > 1:
        note += f" The best size grows as FLOPs^{-fits.power_law(best).exponent:.2f}."
    picture = partial(_sized, [Panel("bits per byte", lines)], Axis("parameters", log=True))
    return [Picture("isoflop", picture), Table("Budgets", header, rows, note)]


def _against(first: Series, series: Series) -> list[str]:
    law, runs = law_of(series), str(len(series.measured))
    if law is None:
        return [series.name, "-", "-", "-", runs]
    shown = [series.name, f"{law.exponent:.3f}"]
    if series is first:
        return [*shown, "1", f"{law.r2:.4f}", runs]
    try:
        found = fits.multiplier(trials(first), trials(series))
    except ValueError as error:
        return [*shown, str(error), f"{law.r2:.4f}", runs]
    ends = f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]" if found.interval else ""
    return [*shown, f"{found.value:.3f}{ends}", f"{law.r2:.4f}", runs]


def _side_by_side(several: Sequence[Series]) -> Table:
    """Return the mean bits per byte of each rung in each series."""
    means: dict[str, dict[str, float]] = {}
    for series in several:
        for trial in sorted(trials(series), key=lambda t: t.compute):
            same = [t.loss for t in trials(series) if t.rung == trial.rung]
            means.setdefault(trial.rung, {})[series.name] = statistics.fmean(same)
    rows = [[rung, *(number(found.get(series.name)) for series in several)] for rung, found in means.items()]
    return Table("val bpb", ["val bpb", *(series.name for series in several)], rows)


def _settings(several: Sequence[Series]) -> list[Block]:
    found = [_one_by_one(series.settings) for series in several]
    texts = {name: [settings.get(name, ABSENT) for settings in found] for name in dict.fromkeys(chain(*found))}
    rows = [[name, *shown] for name, shown in texts.items() if len(set(shown)) > 1]
    return [Table("Settings", ["", *(series.name for series in several)], rows)] if rows else []


def _one_by_one(settings: dict[str, Any]) -> dict[str, str]:
    """Return settings as texts, those of base_train one by one."""
    texts = {key: " ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for key, v in settings.items()}
    words = texts.pop("settings", "").split()
    return texts | dict(word.split("=", 1) for word in words)

"""The curves of a run's stages: one after the other on one time line, or those of several runs over each other."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from raychat.report.blocks import Picture
from raychat.report.chart import Axis, Line, Panel, Point, draw, smooth, thinned
from raychat.report.tables import duration
from raychat.runs import STAGES

Rows = list[dict[str, Any]]
LEAST_SHARE = 0.14  # of the time line that a stage gets, however short it was
MOST_POINTS = 240  # of a line
FEW = 30  # points that are shown as points, not smoothed
LOSS, BPB, CORE = "training loss, nats per token", "validation bits per byte", "CORE in training"
SCORES, REWARD = "CORE, ChatCORE", "mean reward"


def time_line(rows: dict[str, Rows], stages: dict[str, dict[str, Any]]) -> list[Picture]:
    """Return the picture of a run, if there is anything to draw: loss, bits per byte, scores and reward by time."""
    bands = _bands({name: stages[name].get("wall_s") or 0.0 for name in rows})
    panels = [panel for panel in _panels(rows, stages, bands) if panel.lines]
    if not panels:
        return []
    ends, passed = [(0.0, "0")], 0.0
    for name, (_, stop) in bands.items():
        passed += stages[name].get("wall_s") or 0.0
        ends.append((stop, duration(passed)))
    axis = Axis("time in training", ticks=ends, bands=[(*ends_of, name.upper()) for name, ends_of in bands.items()])
    note = "The stages follow each other; a short one is drawn wider than its share of the time."
    return [Picture("curves", partial(_sized, panels, axis), note if len(bands) > 1 else "")]


def _sized(panels: Sequence[Panel], axis: Axis, width: int) -> str:
    return draw(panels, axis, width=width, height=130 if width > 500 else 96)


def _panels(rows: dict[str, Rows], stages: dict[str, Any], bands: dict[str, Point]) -> Iterable[Panel]:
    losses, bpb, scores, rewards = [list[Line]() for _ in range(4)]
    for name, series in rows.items():
        colour, place = STAGES.index(name), partial(_placed, series, stages[name], bands[name])
        if name != "rl":  # the loss of a policy gradient has no meaning by itself
            losses += curve(place("loss"), colour)
        bpb += curve(place("val_bpb"), colour)
        rewards += curve(place("reward"), colour, "rollouts")
        rewards += [line._replace(kind="dots") for line in curve(place("val_reward"), colour, "held out")]
        scores += curve(place("val_core"), colour, CORE)
        for key in ("core", "chatcore"):
            if (score := stages[name].get(key)) is not None:
                bars = [stages[name].get("interval", {}).get(key, (score, score))]
                scores.append(Line([(bands[name][1], score)], colour, kind="dots", bars=bars))
    yield Panel(LOSS, losses, log=True)
    yield Panel(BPB, bpb)
    yield Panel(SCORES, scores)
    yield Panel(REWARD, rewards)


def curve(points: Sequence[Point], colour: int, label: str = "") -> list[Line]:
    """Return few points as they are, many as a thin line under their running mean."""
    if len(points) <= FEW:
        return [Line(points, colour, label, "both")] if points else []
    mean = smooth(points, span=max(5, len(points) // 50))
    return [
        Line(thinned(points, MOST_POINTS), colour, kind="faint"),
        Line(thinned(mean, MOST_POINTS), colour, label),
    ]


def _bands(seconds: dict[str, float]) -> dict[str, Point]:
    """Return where each stage begins and ends on a time line from 0 to 1."""
    total = sum(seconds.values()) or 1.0
    widths = {name: max(LEAST_SHARE, s / total) for name, s in seconds.items()}
    bands, start = {}, 0.0
    for name, width in widths.items():
        bands[name] = (start, start + width / sum(widths.values()))
        start = bands[name][1]
    return bands


def _placed(series: Rows, stage: dict[str, Any], band: Point, key: str) -> list[Point]:
    """Return a figure's points on the time line, by the seconds of their rows, or by steps where these have none."""
    seconds, steps = stage.get("wall_s") or 0.0, max((row["step"] for row in series), default=1)
    start, stop = band
    points = []
    for row in series:
        if row.get(key) is not None:
            share = row["t"] / seconds if seconds and "t" in row else row["step"] / steps
            points.append((start + min(1.0, share) * (stop - start), float(row[key])))
    return points


def over_each_other(runs: dict[str, dict[str, Rows]]) -> list[Picture]:
    """Return a picture for each stage of several runs: their curves over the steps, a colour for each run."""
    made = []
    for stage in STAGES:
        keys = {"reward": REWARD} if stage == "rl" else {"loss": LOSS, "val_bpb": BPB, "val_core": CORE}
        panels = []
        for key, title in keys.items():
            lines = []
            for colour, (run, rows) in enumerate(runs.items()):
                points = [(float(row["step"]), float(row[key])) for row in rows.get(stage, []) if key in row]
                lines += curve(points, colour, run)
            if lines:
                panels.append(Panel(title, lines, log=key == "loss"))
        if panels:
            made.append(Picture(f"curves-{stage}", partial(_sized, panels, Axis(f"step of {stage.upper()}"))))
    return made

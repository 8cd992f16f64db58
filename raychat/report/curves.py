"""Loss, validation and reward curves as SVG pictures."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raychat.runs import STAGES

Rows = list[dict[str, Any]]
COLOURS = dict(zip(STAGES, ("#3b6ea8", "#2f8f6b", "#b5742b", "#9a4a78"), strict=True))
MAX_POINTS = 600  # of a line
PICTURES = {"loss": "training loss (nats per token)", "val_bpb": "validation bits per byte", "reward": "mean reward"}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#999999",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "raychat",  # same figures, same file
}


def pictures_of(rows: dict[str, Rows], stages: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the pictures by name (`loss`, `val_bpb`, `reward`), without the empty ones."""
    made = {}
    for name, title in PICTURES.items():
        shown = {stage: series for stage, series in rows.items() if sum(name in row for row in series) > 1}
        if name == "loss":
            shown.pop("rl", None)  # the loss of a policy gradient has no meaning by itself
        if shown:
            made[name] = _picture(shown, stages, title, [name, "val_reward"] if name == "reward" else [name])
    return made


def _picture(rows: dict[str, Rows], stages: dict[str, dict[str, Any]], title: str, keys: Sequence[str]) -> str:
    """Draw one panel per stage, side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(rows) + 0.4, 2.5), layout="constrained")
        panels = figure.subplots(1, len(rows), squeeze=False)[0]
        for axes, (stage, series) in zip(panels, rows.items(), strict=True):
            for key in keys:
                _line(axes, series, key, COLOURS[stage])
            axes.set_title(f"{stage.upper()}: {title}" if len(rows) == 1 else stage.upper())
            axes.set_xlabel("step")
            if "val_bpb" in keys and (unigram := stages[stage]["unigram_bpb"]) is not None:
                axes.axhline(unigram, color="#999999", linestyle=":", label="unigram")
            if len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(frameon=False)
        if len(rows) > 1:
            panels[0].set_ylabel(title)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()


def _line(axes: Axes, rows: Rows, key: str, colour: str) -> None:
    """Draw a figure over the steps: few as points, many as a thin line under their running mean."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    if len(points) <= 30:
        label, style = {"val_reward": ("held-out problems", "--")}.get(key, (key.replace("_", " "), "-"))
        axes.plot(steps, values, style, color=colour, marker="o", markersize=3, label=label)
        return
    stride = -(-len(points) // MAX_POINTS)
    axes.plot(steps[::stride], values[::stride], color=colour, linewidth=0.6, alpha=0.35)
    smooth = list(_running_mean(values, span=max(5, len(values) // 100)))
    axes.plot(steps[::stride], smooth[::stride], color=colour, linewidth=1.5, label=key.replace("_", " "))


def _running_mean(values: Sequence[float], span: int) -> Iterator[float]:
    """Yield the exponential running mean over about `span` values, without bias at the start."""
    decay, total, weight = 1 - 1 / span, 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        yield total / weight

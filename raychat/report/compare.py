"""Runs side by side: the figures of every stage, their differences to the first run, and the settings that differ."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from raychat.intervals import Draws, draws_of_mean, draws_of_ratio, interval
from raychat.report.blocks import Section, Table, of_table
from raychat.report.curves import Rows, over_each_other
from raychat.report.tables import ABSENT, TITLES, dollars, duration, with_interval
from raychat.runs import STAGES

Stage = dict[str, Any]
COMPOSED = {"core": "CORE", "chatcore": "ChatCORE"}
ITEMS = ("bundle", "task_data", "max_items", "max_problems")  # settings that choose what is asked
HELD_OUT = ("tasks", "task_data")  # those of RL


class Compared(NamedTuple):
    """A run, as `figures.collect` read it."""

    report: dict[str, Any]
    rows: dict[str, Rows]

    def stage(self, name: str) -> Stage:
        """Return the figures of a stage; without any where the run has none."""
        found: Stage = self.report["stages"].get(name, {"tasks": {}, "core_tasks": {}})
        return found


class Difference(NamedTuple):
    """Of a figure of two runs."""

    value: float
    interval: tuple[float, float] | None  # None = the runs recorded no outcomes
    paired: bool  # on the same problems or rows of text, one by one


def sections(runs: Sequence[Compared]) -> list[Section]:
    """Return the comparison: figures, curves over each other, settings, time and cost."""
    figures = [table for name in STAGES if (table := stage_table(name, runs)).rows]
    pictures = over_each_other({run.report["run"]: run.rows for run in runs})
    parts = [
        *map(of_table, figures),
        Section("Curves", pictures),
        of_table(_time(runs)),
        of_table(settings_table(runs)),
    ]
    return [part for part in parts if part.blocks and getattr(part.blocks[0], "rows", True)]


def stage_table(name: str, runs: Sequence[Compared]) -> Table:
    """Return the figures of a stage in each run, and how far they are from the first run's."""
    first, *others = [run.stage(name) for run in runs]
    names = [run.report["run"] for run in runs]
    header = ["", names[0], *(column for other in names[1:] for column in (other, "difference"))]
    rows, paired = [], set[bool]()
    for figure, title in _figures([first, *others]).items():
        row = [title, _shown(first, figure)]
        for other in others:
            found = difference(first, other, figure)
            row += [_shown(other, figure), ABSENT if found is None else _signed(found)]
            paired |= {found.paired} if found and found.interval else set()
        rows.append(row)
    kinds = {True: "item by item where both had the same ones", False: "the items of each drawn apart"}
    note = (
        f"In brackets: 95% intervals by the bootstrap, {' or '.join(kinds[p] for p in sorted(paired))}."
        if paired
        else ""
    )
    return Table(name.upper(), header, rows, note)


def difference(first: Stage, other: Stage, figure: str) -> Difference | None:
    """Return by how much a figure of the other run is above the first one's.

    None where one has not measured it, and for CORE and ChatCORE of other tasks.
    """
    values = _value(first, figure), _value(other, figure)
    if values[0] is None or values[1] is None or _tasks(first, figure).keys() != _tasks(other, figure).keys():
        return None
    paired = same_problems(first, other, figure)
    draws = draws_of(first, figure, 0), draws_of(other, figure, 0 if paired else 1)
    ends = None if draws[0] is None or draws[1] is None else interval(draws[1] - draws[0])
    return Difference(values[1] - values[0], ends, paired)


def same_problems(first: Stage, other: Stage, figure: str) -> bool:
    """Tell whether a figure of both runs is of the same problems, of the same data and as many, or of the same text."""
    if figure == "val_bpb":
        bytes_ = [stage.get("outcomes", {}).get(figure, {}).get("bytes") for stage in (first, other)]
        return bool(bytes_[0] == bytes_[1])
    if not _tasks(first, figure):  # rewards of training are of other problems in every run
        asked = [[(stage.get("settings") or {}).get(key) for key in HELD_OUT] for stage in (first, other)]
        num = [len(stage.get("outcomes", {}).get(figure, ())) for stage in (first, other)]
        return figure == "val_reward" and (asked[0], num[0]) == (asked[1], num[1])
    settings = [stage.get("eval_settings") or {} for stage in (first, other)]
    if any(settings[0].get(key) != settings[1].get(key) for key in ITEMS):
        return False
    counts = [
        {task: len(outcomes) for task, outcomes in stage.get("outcomes", {}).items() if task in _tasks(stage, figure)}
        for stage in (first, other)
    ]
    return counts[0] == counts[1]


def draws_of(stage: Stage, figure: str, seed: int) -> Draws | None:
    """Return a figure in each draw of its problems, rows of text or steps; None without outcomes."""
    tasks, outcomes = _tasks(stage, figure), stage.get("outcomes", {})
    if figure == "val_bpb" and figure in outcomes:
        return draws_of_ratio(outcomes[figure]["nats"], outcomes[figure]["bytes"], seed) / math.log(2)
    if not tasks and figure in outcomes:
        return draws_of_mean(outcomes[figure], seed)
    if not tasks or not all(outcomes.get(task) for task in tasks):
        return None
    draws = [draws_of_mean(outcomes[task], 2 * number + seed) for number, task in enumerate(sorted(tasks))]
    if figure not in COMPOSED:
        return draws[0]
    chances = [tasks[task] for task in sorted(tasks)]
    centred = [(drawn - chance) / (1 - chance) for drawn, chance in zip(draws, chances, strict=True)]
    composed: Draws = sum(centred[1:], start=centred[0]) / len(centred)
    return composed


def _tasks(stage: Stage, figure: str) -> dict[str, float]:
    """Return the tasks that a figure is made of, each with the accuracy of guessing."""
    chat = {name: task["chance"] or 0.0 for name, task in stage["tasks"].items()}
    core = {name: _chance(task) for name, task in stage["core_tasks"].items()}
    return {"core": core, "chatcore": chat}.get(figure) or {name: 0.0 for name in (chat | core) if name == figure}


def _chance(task: dict[str, Any]) -> float:
    """Return the accuracy of guessing, from accuracy a and centred accuracy (a - chance) / (1 - chance)."""
    accuracy, centred = task["accuracy"], task["centred"]
    return 0.0 if centred == 1 else (accuracy - centred) / (1 - centred)


def _figures(stages: Sequence[Stage]) -> dict[str, str]:
    """Return the figures that at least one of the stages has, each with its title."""
    tasks = dict.fromkeys(name for stage in stages for kind in ("core_tasks", "tasks") for name in stage[kind])
    titles = {"val_bpb": "val bpb", **COMPOSED, **{name: TITLES.get(name, name) for name in tasks}}
    titles |= {"reward_last": "mean reward, last steps", "val_reward": "reward of held-out problems"}
    return {name: title for name, title in titles.items() if any(_value(stage, name) is not None for stage in stages)}


def _value(stage: Stage, figure: str) -> float | None:
    task = (stage["core_tasks"] | stage["tasks"]).get(figure)
    found: float | None = task["accuracy"] if task else stage.get(figure)
    return found


def _shown(stage: Stage, figure: str) -> str:
    return with_interval(_value(stage, figure), stage.get("interval", {}).get(figure))


def _signed(found: Difference) -> str:
    return with_interval(found.value, found.interval, "+.4f", "+.2f")


def _time(runs: Sequence[Compared]) -> Table:
    rows = []
    for run in runs:
        total = run.report["total"]
        rows.append(
            [run.report["run"], duration(total["wall_s"]), duration(total["eval_wall_s"]), dollars(total["cost"])]
        )
    return Table("Time and cost", ["", "training", "evaluation", "cost"], rows)


def settings_table(runs: Sequence[Compared]) -> Table:
    """Return the settings in which the runs differ, by stage."""
    found = [
        {f"{name}: {key}": value for name in STAGES for key, value in _settings(run.stage(name)).items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for settings in found for key in settings)
    rows = [[key, *(str(settings.get(key, ABSENT)) for settings in found)] for key in keys]
    header = ["", *(run.report["run"] for run in runs)]
    return Table("Settings that differ", header, [row for row in rows if len(set(row[1:])) > 1])


def _settings(stage: Stage) -> dict[str, Any]:
    """Return a stage's recipe and runtime without its parent, which is another for every run, and its evaluation's."""
    settings = {key: value for key, value in (stage.get("settings") or {}).items() if key != "parent"}
    model = settings.pop("model", None) or {}
    evaluation = {f"evaluation's {key}": value for key, value in (stage.get("eval_settings") or {}).items()}
    code = stage.get("provenance") or {}
    return model | settings | evaluation | {key: code[key] for key in ("commit", "diff_sha256") if key in code}

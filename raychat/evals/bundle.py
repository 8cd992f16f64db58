"""Read CORE's tasks from a bundle of files in the layout of DCLM (arXiv:2406.11794).

A bundle is a folder with
    core.yaml              icl_tasks: label, dataset_uri, num_fewshot: [n], icl_task_type, continuation_delimiter (" ")
    eval_meta_data.csv     "Eval Task" and "Random baseline", the accuracy of guessing in percent
    eval_data/<uri>        one JSON object a line
"""

import csv
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import yaml

from raychat import paths


class Item(NamedTuple):
    """Candidate texts, each a context and a continuation; number `gold` is right."""

    contexts: list[str]
    continuations: list[str]
    gold: int


class CoreTask(NamedTuple):
    label: str
    kind: str  # of KINDS
    file: str  # path or URL of its items
    num_fewshot: int
    delimiter: str  # between context and continuation
    chance: float  # accuracy of guessing, 0 to 1


KINDS: dict[str, Callable[[dict[str, Any]], Item]] = {  # icl_task_type -> from a JSON object to the item
    "multiple_choice": lambda row: Item([row["query"]] * len(row["choices"]), list(row["choices"]), int(row["gold"])),
    "schema": lambda row: Item(
        list(row["context_options"]), [row["continuation"]] * len(row["context_options"]), int(row["gold"])
    ),
    "language_modeling": lambda row: Item([row["context"].strip()], [row["continuation"]], 0),
}


def load_bundle(folder: str, labels: Sequence[str] | None = None) -> list[CoreTask]:
    """Read the tasks of a bundle, in its order; `labels` None means all of them."""
    config = yaml.safe_load(_read(folder, "core.yaml"))
    table = csv.DictReader(io.StringIO(_read(folder, "eval_meta_data.csv")))
    chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in table}
    found = {entry["label"]: entry for entry in config["icl_tasks"]}
    unknown = [label for label in labels or () if label not in found]
    if unknown:
        raise ValueError(f"{folder} has no task {', '.join(unknown)}; it has {', '.join(found)}")
    return [_task(folder, entry, chance) for label, entry in found.items() if labels is None or label in labels]


def _read(folder: str, name: str) -> str:
    try:
        return paths.read_text(paths.join(folder, name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} is not a CORE bundle: it has no {name}; expected core.yaml, eval_meta_data.csv and eval_data/"
        ) from None


def _task(folder: str, entry: dict[str, Any], chance: dict[str, float]) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in KINDS:
        raise ValueError(f"task {label} of {folder} has icl_task_type {kind!r}; expected one of {', '.join(KINDS)}")
    if label not in chance:
        raise ValueError(f"task {label} of {folder} has no random baseline in eval_meta_data.csv")
    file = paths.join(folder, "eval_data", *entry["dataset_uri"].split("/"))
    delimiter = entry.get("continuation_delimiter", " ")
    return CoreTask(label, kind, file, int(entry["num_fewshot"][0]), delimiter, chance[label])


@functools.lru_cache(maxsize=32)
def read_items(task: CoreTask) -> tuple[Item, ...]:
    """Read all items of a task; an error names the line that is not one."""
    try:
        lines = paths.read_text(task.file).splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"task {task.label}: its items are not there: {task.file}") from None
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = KINDS[task.kind](json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{task.file}, line {number}: not an item of type {task.kind}: {e!r}") from e
        if not 0 <= item.gold < len(item.contexts):
            raise ValueError(f"{task.file}, line {number}: gold is {item.gold}, of {len(item.contexts)} candidates")
        items.append(item)
    return tuple(items)

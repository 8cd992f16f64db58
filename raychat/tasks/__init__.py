"""Tasks to train on and to evaluate with, from the hub or from files in the same layouts.

To add one, write a function of (root, split) that returns a `Task`, and name it in `TASKS`.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from raychat.tasks.choices import Wording, arc, mmlu, own_wording
from raychat.tasks.gsm8k import gsm8k
from raychat.tasks.humaneval import humaneval
from raychat.tasks.source import HUB
from raychat.tasks.spelling import simple_spelling, spelling_bee
from raychat.tasks.talks import conversations, identity
from raychat.tasks.task import Problem, Task, chained, hold_out, joined, mixture

__all__ = [
    "HUB",
    "TASKS",
    "Problem",
    "Task",
    "chained",
    "find",
    "hold_out",
    "in_turns",
    "joined",
    "load",
    "mixture",
    "name_and_repeat",
]

THEN = "then"  # between tasks that are mixed and those that are mixed after them

CHOICES = ("arc-easy", "arc-challenge", "mmlu")  # these also take a wording
TASKS: dict[str, Callable[..., Task]] = {
    "arc-easy": lambda root, split, wording=own_wording: arc(root, "ARC-Easy", split, wording),
    "arc-challenge": lambda root, split, wording=own_wording: arc(root, "ARC-Challenge", split, wording),
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "spelling-bee": spelling_bee,
    "simple-spelling": simple_spelling,
    "conversations": conversations,
    "identity": identity,
}


def load(name: str, root: str, split: str, wording: Wording = own_wording) -> Task:
    """Return a task by its name in `TASKS`.

    Args:
        name: in any case, with hyphens or underscores.
        root: the folder or URL of the data sets, or "hub".
        split: such as "train" or "test".
        wording: of multiple-choice questions.

    Raises:
        ValueError: there is no such task or split, or `root` holds no data in the expected layout.
    """
    make = find(name)
    return make(root, split, wording) if make in map(find, CHOICES) else make(root, split)


def find(name: str) -> Callable[..., Task]:
    """Return the function of (root, split) that loads a task. Raises ValueError where there is no such task."""
    key = name.lower().replace("_", "-")
    if key not in TASKS:
        raise ValueError(f"no task is called {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[key]


def name_and_repeat(entry: str) -> tuple[str, int]:
    """Return the name of a task and how many times it is taken.

    Raises:
        ValueError: There is no such task, or the number behind the `*` is not a whole one of 1 or more.

    >>> name_and_repeat("gsm8k*4"), name_and_repeat("mmlu")
    (('gsm8k', 4), ('mmlu', 1))
    """
    name, star, repeat = entry.partition("*")
    find(name)
    if star and not (repeat.isdecimal() and int(repeat) > 0):
        raise ValueError(f"task {entry!r}: expected NAME or NAME*N with a whole number N of 1 or more, such as gsm8k*4")
    return name, int(repeat) if star else 1


def in_turns(entries: Sequence[str]) -> list[list[tuple[str, int]]]:
    """Return the tasks that are mixed at a time, by name and repeat: `then` stands between these and the next ones.

    Raises:
        ValueError: as `name_and_repeat`; or there is no task before or behind a `then`.

    >>> in_turns(["arc-easy", "then", "gsm8k*4", "mmlu"])
    [[('arc-easy', 1)], [('gsm8k', 4), ('mmlu', 1)]]
    """
    turns = [list(turn) for is_then, turn in groupby(entries, THEN.__eq__) if not is_then]
    if len(turns) != [*entries].count(THEN) + 1:
        raise ValueError(f"tasks {' '.join(entries)!r}: expected tasks before and behind every {THEN!r}")
    return [[name_and_repeat(entry) for entry in turn] for turn in turns]

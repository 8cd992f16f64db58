"""What a task is: problems with reference answers, and a reward for a model's answers."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload


class Problem(NamedTuple):
    """A conversation whose last message is the reference answer of the assistant.

    Free conversations may be malformed or end with the user; `data.pack.conversations` sorts them out.
    """

    messages: list[dict[str, Any]]
    letters: tuple[str, ...] = ()  # the possible answers of a multiple-choice problem
    reference: Any = None  # what the reward compares with
    source: str = ""  # file and line, or data set, split and row number; empty for generated problems


@dataclass(frozen=True)
class Task:
    """A named set of problems and how answers to them are judged."""

    name: str
    problems: Sequence[Problem]
    chance: float  # expected reward of a blind guess
    reward: Callable[[Problem, str], float]  # of a completion's text
    max_new_tokens: int = 256


class Lazy(Sequence[Problem]):
    """Problems made by their number, only when asked for, so that a large data set costs no memory."""

    def __init__(self, num: int, make: Callable[[int], Problem]) -> None:
        self._numbers, self._make = range(num), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self._make(i) for i in self._numbers[index]]
        return self._make(self._numbers[index])


def _chosen(tasks: Sequence[Task], order: Sequence[tuple[int, int]]) -> Sequence[Problem]:
    """Return problems of several tasks in one order, given by (task, problem) index pairs."""

    def problem(index: int) -> Problem:
        task, number = order[index]
        return tasks[task].problems[number]

    return Lazy(len(order), problem)


def mixture(parts: Sequence[tuple[Task, int]], seed: int = 0) -> Sequence[Problem]:
    """Return the problems of several tasks, each task `repeat` times, in one shuffled order.

    The order depends only on `seed` and the sizes. Problems are made when asked for.

    Raises:
        ValueError: a repeat is negative, or there are no problems at all.
    """
    if any(repeat < 0 for _, repeat in parts):
        raise ValueError(f"a task can be repeated 0 times or more, got {[(task.name, n) for task, n in parts]}")
    tasks = [task for task, _ in parts]
    order = [(i, j) for i, (task, repeat) in enumerate(parts) for _ in range(repeat) for j in range(len(task.problems))]
    if not order:
        raise ValueError("the mixture holds no problems; give at least one task a repeat of 1 or more")
    random.Random(f"mixture {seed}").shuffle(order)
    return _chosen(tasks, order)


def hold_out(task: Task, frac: float) -> tuple[Task, Task]:
    """Split a task into problems to train on and problems to validate on, `frac` of all, rounded up.

    The choice depends only on the task's name and size, so SFT does not train on what midtraining holds out. A larger
    `frac` holds out the same problems and more.
    """
    order = [(0, i) for i in range(len(task.problems))]
    random.Random(f"held out {task.name}").shuffle(order)
    num = math.ceil(frac * len(order))
    train, val = (replace(task, problems=_chosen([task], part)) for part in (order[num:], order[:num]))
    return train, val


def no_reward(problem: Problem, completion: str) -> float:
    """Raise ValueError: free conversations have no right answer."""
    raise ValueError("free conversations are only for training; they have no reward")

"""What a task is: problems with reference answers, and a reward for the answers of a model."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload


class Problem(NamedTuple):
    """A conversation whose last message is the reference answer of the assistant.

    `letters` are the possible answers of a multiple-choice problem, `reference` is what the reward compares with.
    """

    messages: list[dict[str, Any]]
    letters: tuple[str, ...] = ()
    reference: Any = None


@dataclass(frozen=True)
class Task:
    """A named set of problems; `chance` is a blind guess's expected reward, `reward` judges a completion's text."""

    name: str
    problems: Sequence[Problem]
    chance: float
    reward: Callable[[Problem, str], float]
    max_new_tokens: int = 256


class Mapped(Sequence[Problem]):
    """Problems made from rows only when asked for, so that a large data set costs no memory."""

    def __init__(self, rows: Sequence[Any], make: Callable[[Any], Problem]) -> None:
        self.rows, self.make = rows, make

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.make(self.rows[index])

    def __iter__(self) -> Iterator[Problem]:
        return (self.make(row) for row in self.rows)


class _Chosen(Sequence[Problem]):
    """Problems of several tasks in one order, given by (task, problem) index pairs."""

    def __init__(self, tasks: Sequence[Task], order: Sequence[tuple[int, int]]) -> None:
        self.tasks, self.order = tasks, order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        task, problem = self.order[index]
        return self.tasks[task].problems[problem]


def mixture(parts: Sequence[tuple[Task, int]], seed: int = 0) -> Sequence[Problem]:
    """Return the problems of several tasks, each task `repeat` times, in one shuffled order.

    The order depends on `seed` and the sizes only. Problems are made when asked for.

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
    return _Chosen(tasks, order)


def hold_out(task: Task, frac: float) -> tuple[Task, Task]:
    """Split a task into problems to train on and problems to validate on, `frac` of all, rounded up.

    Which ones depends on the task's name and size only: what midtraining holds out SFT does not train on. A larger
    `frac` holds out the same ones and more.
    """
    order = [(0, i) for i in range(len(task.problems))]
    random.Random(f"held out {task.name}").shuffle(order)
    num = math.ceil(frac * len(order))
    train, val = (replace(task, problems=_Chosen([task], part)) for part in (order[num:], order[:num]))
    return train, val


def no_reward(problem: Problem, completion: str) -> float:
    """Refuse to judge: free conversations have no right answer.

    Raises:
        ValueError: always.
    """
    raise ValueError("free conversations are there to train on; they have no reward")

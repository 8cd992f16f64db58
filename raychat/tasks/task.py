"""What a task is: problems with reference answers, and a reward for a model's answers."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from raychat.chat.parts import Part
from raychat.chat.template import Message


class Problem(NamedTuple):
    """A conversation whose last message is the reference answer of the assistant.

    Free conversations may be malformed or end with the user; `data.pack.conversations` sorts them out.
    """

    messages: list[Message]
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
    guards: tuple[str, ...] = ()  # protections of this machine from the programs that answers are


class Lazy(Sequence[Problem]):
    """Problems made by their number, only when asked for, so that a large data set costs no memory."""

    def __init__(self, num: int, make: Callable[[int], Problem]) -> None:
        self._numbers, self._make = range(num), make

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in self._numbers[index]]
        return self._make(self._numbers[index])


def exchange(question: str, answer: str | list[Part]) -> list[Message]:
    """Return the conversation that is one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _chosen(order: Sequence[tuple[Sequence[Problem], int]]) -> Sequence[Problem]:
    """Return problems in an order: each a number in one of several sequences."""
    return Lazy(len(order), lambda i: order[i][0][order[i][1]])


def mixture(parts: Sequence[tuple[Task, int]], seed: int = 0) -> Sequence[Problem]:
    """Return the problems of several tasks, each task `repeat` times, in one shuffled order.

    The order depends only on `seed` and the sizes. Problems are made when asked for.

    Raises:
        ValueError: a repeat is negative, or there are no problems at all.
    """
    if any(repeat < 0 for _, repeat in parts):
        raise ValueError(f"a task can be repeated 0 times or more, got {[(task.name, n) for task, n in parts]}")
    order = [(task.problems, i) for task, repeat in parts for _ in range(repeat) for i in range(len(task.problems))]
    if not order:
        raise ValueError("the mixture holds no problems; give at least one task a repeat of 1 or more")
    random.Random(f"mixture {seed}").shuffle(order)
    return _chosen(order)


def chained(parts: Sequence[Sequence[Problem]]) -> Sequence[Problem]:
    """Return the problems of several sequences, one sequence after the other."""
    return _chosen([(problems, i) for problems in parts for i in range(len(problems))])


def joined(parts: Sequence[tuple[Task, int]]) -> Task:
    """Return several tasks as one: the problems of their `mixture`, each judged by its own task.

    Raises:
        ValueError: as `mixture`.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    tasks = [task for task, _ in parts]
    owned = [(replace(task, problems=_owned(task.problems, number)), n) for number, (task, n) in enumerate(parts)]
    problems = mixture(owned)
    return Task(
        name=" + ".join(task.name for task in tasks),
        problems=problems,
        chance=sum(task.chance * n * len(task.problems) for task, n in parts) / len(problems),
        reward=partial(_own_reward, tuple(task.reward for task in tasks)),
        max_new_tokens=max(task.max_new_tokens for task in tasks),
        guards=tuple(sorted({guard for task in tasks for guard in task.guards})),
    )


def _owned(problems: Sequence[Problem], owner: int) -> Sequence[Problem]:
    """Return problems whose reference tells the number of their task, too."""
    return Lazy(len(problems), lambda i: problems[i]._replace(reference=(owner, problems[i].reference)))


def _own_reward(rewards: Sequence[Callable[[Problem, str], float]], problem: Problem, completion: str) -> float:
    owner, reference = problem.reference
    return rewards[owner](problem._replace(reference=reference), completion)


def hold_out(task: Task, frac: float) -> tuple[Task, Task]:
    """Split a task into problems to train on and problems to validate on, `frac` of all, rounded up.

    The choice depends only on the task's name and size, so SFT does not train on what midtraining holds out. A larger
    `frac` holds out the same problems and more.
    """
    order = [(task.problems, i) for i in range(len(task.problems))]
    random.Random(f"held out {task.name}").shuffle(order)
    num = math.ceil(frac * len(order))
    return replace(task, problems=_chosen(order[num:])), replace(task, problems=_chosen(order[:num]))


def no_reward(problem: Problem, completion: str) -> float:
    """Raise ValueError: free conversations have no right answer."""
    raise ValueError("free conversations are only for training; they have no reward")

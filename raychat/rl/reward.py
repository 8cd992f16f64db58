"""What is asked and how it is rewarded: a task's own reward, or any function that a user names `module:function`."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from raychat import tasks
from raychat.tasks import Problem, Task

Reward = Callable[[Problem, str], float]  # of a problem and the text of an answer

_TEST_ONLY = ("humaneval",)  # tasks without problems to train on: half of theirs are, the others test


def task_for(names: Sequence[str], root: str, split: str, reward: Reward | None = None) -> Task:
    """Load the problems of tasks to train on ("train") or to test on ("test"), as one task.

    Args:
        names: of tasks; NAME*3 repeats one.
        reward: replaces the tasks' own.

    Raises:
        ValueError: as `tasks.load` and `tasks.name_and_repeat`.
    """
    parts = [(_load(name, root, split, reward), repeat) for name, repeat in map(tasks.name_and_repeat, names)]
    return tasks.joined(parts)


def _load(name: str, root: str, split: str, reward: Reward | None) -> Task:
    if name.lower() in _TEST_ONLY:
        train, test = tasks.hold_out(tasks.load(name, root, "test"), 0.5)
        task = train if split == "train" else test
    else:
        task = tasks.load(name, root, split)
    return task if reward is None else replace(task, reward=reward)


def load_reward(name: str) -> Reward:
    """Import a reward by `module:function`.

    Raises:
        ValueError: the name has another form, or it does not lead to a function that can be imported.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"--reward is {name!r}; expected module:function, such as my_rewards:brief")
    try:
        reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--reward {name} cannot be imported: {error}; is the module's folder on PYTHONPATH?"
        ) from error
    if not callable(reward):
        raise ValueError(f"--reward {name} is a {type(reward).__name__}; expected a function of (problem, text)")
    return partial(_finite, name)


def _finite(name: str, problem: Problem, text: str) -> float:
    """Return the reward of a function by its name, which is imported in the process that calls it."""
    module, _, function = name.partition(":")
    earned = getattr(importlib.import_module(module), function)(problem, text)
    try:
        number = float(earned)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--reward {name} returned {earned!r} for the answer {text!r:.80}; expected a finite number")
    return number

"""What an evaluation is: calls that any process with the model can make, and how their results become figures."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

from raychat import checkpoint
from raychat.device import default_device
from raychat.engine.engine import Engine
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

SEED = 1234
MAX_SEQUENCES = 32  # generated at once
ITEMS_PER_CALL = 32  # items of a CORE task, or problems of a chat task

T = TypeVar("T")
TaskT = TypeVar("TaskT")


class LoadedModel:
    """A model under evaluation and its tokenizer."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, path: str) -> "LoadedModel":
        """Load a checkpoint (local or remote) onto this process's GPU, or the CPU without one."""
        model, _ = checkpoint.load_model(path, default_device())
        return cls(model, checkpoint.load_tokenizer(path))

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.tokenizer, max_sequences=MAX_SEQUENCES)


class Evaluation(NamedTuple):
    """One evaluation. Its calls, and so its figures, are the same for any number of processes."""

    name: str
    calls: Sequence[Callable[[LoadedModel], Any]]  # picklable, and so are their results
    finish: Callable[[list[Any]], dict[str, Any]]  # results of the calls, in order -> the figures in eval.json


def over_tasks(
    name: str,
    items: Mapping[TaskT, Sequence[int]],
    call: Callable[..., list[Any]],
    figures: Callable[[dict[TaskT, list[Any]]], dict[str, Any]],
) -> Evaluation:
    """Describe an evaluation of these items of each task.

    Args:
        call: (loaded model, task=, indices=) -> a result for each of these items of the task.
        figures: from the results of all items, by task, to the figures in eval.json.
    """
    parts = [(task, chunk) for task, indices in items.items() for chunk in chunks(indices, ITEMS_PER_CALL)]

    def finish(results: list[list[Any]]) -> dict[str, Any]:
        found: dict[TaskT, list[Any]] = {task: [] for task in items}
        for (task, _), result in zip(parts, results, strict=True):
            found[task] += result
        return figures(found)

    return Evaluation(name, [partial(call, task=task, indices=chunk) for task, chunk in parts], finish)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a sequence into chunks of at most `size`.

    >>> chunks([3, 1, 4, 1, 5], 2)
    [[3, 1], [4, 1], [5]]
    """
    return [items[i : i + size] for i in range(0, len(items), size)]


def chosen(num_items: int, max_items: int | None) -> list[int]:
    """Choose the items to evaluate: all, or `max_items` that are always the same. A larger choice holds a smaller one.

    >>> set(chosen(100, 5)) < set(chosen(100, 10))
    True
    """
    order = list(range(num_items))
    random.Random(SEED).shuffle(order)
    return sorted(order[:max_items])

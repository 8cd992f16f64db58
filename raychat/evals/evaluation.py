"""What an evaluation is: calls that any process with the model can make, and how their results become figures."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from raychat import checkpoint
from raychat.device import default_device
from raychat.engine.engine import Engine
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

SEED = 1234
MAX_SEQUENCES = 256  # generated at once, while the cache has room
CACHE_TOKENS = 1 << 17  # of the engine's cache

T = TypeVar("T")
TaskT = TypeVar("TaskT")


class LoadedModel:
    """A model under evaluation and its tokenizer."""

    def __init__(self, model: Model, tokenizer: Tokenizer, *, pack: bool = True) -> None:
        """pack: False for a model in training, whose compiled passes would be compiled anew."""
        self.model, self.tokenizer = model.eval(), tokenizer
        if pack:
            self.model.pack()  # now, and not with the engine: every call computes with the same layout

    @classmethod
    def load(cls, path: str) -> "LoadedModel":
        """Load a checkpoint (local or remote) onto this process's GPU, or the CPU without one."""
        model, _ = checkpoint.load_model(path, default_device())
        return cls(model, checkpoint.load_tokenizer(path))

    @cached_property
    def engine(self) -> Engine:
        cache_tokens = max(CACHE_TOKENS, self.model.config.sequence_len)
        return Engine(self.model, self.tokenizer, max_sequences=MAX_SEQUENCES, cache_tokens=cache_tokens)


class Call(NamedTuple):
    """A part of an evaluation."""

    part: str  # whose seconds it adds to: a task, or the evaluation
    run: Callable[[LoadedModel], Any]  # picklable, and so is its result
    cost: float = 0.0  # about how many tokens it computes; long calls are made first

    def __call__(self, loaded: LoadedModel) -> Any:
        return self.run(loaded)


class Evaluation(NamedTuple):
    """One evaluation. Its calls, and so its figures, are the same for any number of processes."""

    name: str
    calls: Sequence[Call]
    finish: Callable[[list[Any]], dict[str, Any]]  # results of the calls, in order -> the figures in eval.json


def over_tasks(
    name: str,
    calls: Sequence[Sequence[tuple[TaskT, Sequence[int]]]],
    run: Callable[..., list[list[Any]]],
    figures: Callable[[dict[TaskT, list[Any]]], dict[str, Any]],
    *,
    label: Callable[[TaskT], str] = str,
    cost: Callable[[TaskT], float],
) -> Evaluation:
    """Describe an evaluation of items of tasks.

    Args:
        calls: the parts of each call, which are a task and the numbers of some of its items; a task's are in order.
        run: (loaded model, parts=) -> for each part, a result for each of its items.
        figures: from the results of all items, by task, to the figures in eval.json.
        label: a task's name.
        cost: of one of its items, as in `Call`.
    """

    def finish(results: list[list[list[Any]]]) -> dict[str, Any]:
        found: dict[TaskT, list[Any]] = {task: [] for parts in calls for task, _ in parts}
        for parts, of_call in zip(calls, results, strict=True):
            for (task, _), of_part in zip(parts, of_call, strict=True):
                found[task] += of_part
        return figures(found)

    def call(parts: Sequence[tuple[TaskT, Sequence[int]]]) -> Call:
        names = ", ".join(dict.fromkeys(label(task) for task, _ in parts))
        return Call(names, partial(run, parts=parts), sum(len(items) * cost(task) for task, items in parts))

    return Evaluation(name, [call(parts) for parts in calls], finish)


def parts_of(items: Mapping[TaskT, Sequence[int]], size: int) -> list[list[tuple[TaskT, Sequence[int]]]]:
    """Cut the items of tasks, one task after the other, into the parts of calls of `size` items.

    >>> parts_of({"a": [0, 1, 2], "b": [5, 7]}, 4)
    [[('a', [0, 1, 2]), ('b', [5])], [('b', [7])]]
    """
    flat = [(task, index) for task, of_task in items.items() for index in of_task]
    return [
        [(task, [index for _, index in group]) for task, group in groupby(call, key=itemgetter(0))]
        for call in chunks(flat, size)
    ]


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

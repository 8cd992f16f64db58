"""CORE: few-shot tasks for base models.

Every item is a few candidate texts, of which one is right. A prompt is the BOS, the few-shot examples, then the
candidate, joined by blank lines. The candidates of `multiple_choice` share the context, those of `schema` the
continuation. The candidate with the lowest mean loss wins, over the tokens that differ in `multiple_choice` and over
the continuation in `schema`. The one candidate of `language_modeling` is right when greedy decoding gives its
continuation.

Source: DCLM, arXiv:2406.11794.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from raychat.evals.bundle import CoreTask, Item, read_items
from raychat.evals.evaluation import ITEMS_PER_CALL, SEED, Evaluation, LoadedModel, chosen, chunks
from raychat.evals.scoring import logits_of
from raychat.model.base import Model
from raychat.model.loss import token_nll
from raychat.tokenizer import Tokenizer

BATCH_TOKENS = 8192

Rows = list[list[int]]  # one candidate's token ids each


class Score(NamedTuple):
    """A task's result."""

    accuracy: float
    centred: float  # 0 = guessing, 1 = perfect
    num_items: int


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with.

    >>> shared_prefix([[1, 2, 3], [1, 2, 4]])
    2
    """
    shortest = min(len(row) for row in rows)
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def _after_shared_prefix(rows: Rows, contexts: Rows) -> list[int]:
    start = shared_prefix(rows)
    return [len(row) - start for row in rows]


def _shared_suffix(rows: Rows, contexts: Rows) -> list[int]:
    shared = shared_prefix([row[::-1] for row in rows])
    return [min(shared, *_after_context(rows, contexts))] * len(rows)  # contexts may end alike, too


def _after_context(rows: Rows, contexts: Rows) -> list[int]:
    return [len(row) - shared_prefix([row, context]) for row, context in zip(rows, contexts, strict=True)]


# (candidates, their contexts alone) -> number of tokens to score at the end of each
_NUM_SCORED: dict[str, Callable[[Rows, Rows], list[int]]] = {
    "multiple_choice": _after_shared_prefix,
    "schema": _shared_suffix,
    "language_modeling": _after_context,
}


def prompts(task: CoreTask, items: Sequence[Item], index: int) -> tuple[list[str], list[str]]:
    """Return the texts of an item's candidates with their few-shot examples, and the same without the continuation.

    The examples are drawn from all other items, with a seed of the item's own.
    """
    others = range(len(items) - 1)
    drawn = random.Random(f"{SEED}/{task.label}/{index}").sample(others, min(task.num_fewshot, len(others)))
    examples = [items[i + (i >= index)] for i in drawn]  # steps over the item itself
    shots = [_text(task, example, example.gold) for example in examples]
    item = items[index]
    full = [_text(task, item, i) for i in range(len(item.contexts))]
    # Without trailing blanks: they belong to the first token of the continuation.
    bare = [f"{context}{task.delimiter}".rstrip() for context in item.contexts]
    return ["\n\n".join([*shots, text]) for text in full], ["\n\n".join([*shots, text]) for text in bare]


def _text(task: CoreTask, item: Item, candidate: int) -> str:
    return f"{item.contexts[candidate]}{task.delimiter}{item.continuations[candidate]}"


def candidate_rows(task: CoreTask, items: Sequence[Item], index: int, tokenizer: Tokenizer) -> tuple[Rows, list[int]]:
    """Return the token ids of an item's candidates, and how many at the end of each to score (at least one)."""
    full, bare = ([[tokenizer.bos, *tokenizer.encode(text)] for text in texts] for texts in prompts(task, items, index))
    counts = _NUM_SCORED[task.kind](full, bare)
    return full, [min(max(count, 1), len(row) - 1) for count, row in zip(counts, full, strict=True)]


def evaluate_items(
    model: Model, tokenizer: Tokenizer, task: CoreTask, indices: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> list[bool]:
    """Return for each of these items of a task whether the model is right.

    Candidates longer than the model's context keep their tail.
    """
    items = read_items(task)
    context = model.config.sequence_len
    rows: Rows = []
    counts: list[int] = []
    owners: list[slice] = []
    for index in indices:
        candidates, num_scored = candidate_rows(task, items, index, tokenizer)
        owners.append(slice(len(rows), len(rows) + len(candidates)))
        rows += [row[-context:] for row in candidates]
        counts += [min(count, context - 1) for count in num_scored]
    losses, greedy = _score_rows(model, rows, counts, batch_tokens)
    correct = []
    for index, owned in zip(indices, owners, strict=True):
        mine = losses[owned]
        correct.append(mine.index(min(mine)) == items[index].gold if len(mine) > 1 else greedy[owned.start])
    return correct


def _score_rows(model: Model, rows: Rows, counts: list[int], batch_tokens: int) -> tuple[list[float], list[bool]]:
    """Return each row's mean loss over its last `count` tokens, and whether greedy decoding gives them."""
    losses, greedy = [0.0] * len(rows), [False] * len(rows)
    for number, logits in logits_of(model, rows, batch_tokens):
        count = counts[number]
        predictions = logits[-count - 1 : -1].unsqueeze(0)  # (1, count, V)
        targets = torch.tensor([rows[number][-count:]], device=predictions.device)
        losses[number] = token_nll(predictions, targets).mean().item()
        greedy[number] = bool((predictions.argmax(-1) == targets).all())
    return losses, greedy


def centred(accuracy: float, chance: float) -> float:
    """Scale an accuracy so that guessing is 0 and perfection 1."""
    return (accuracy - chance) / (1 - chance)


def score(task: CoreTask, correct: Sequence[bool]) -> Score:
    """Score a task by which of its items are correct.

    Raises:
        ValueError: there are no items.
    """
    if not correct:
        raise ValueError(f"task {task.label}: no items to score in {task.file}")
    accuracy = sum(correct) / len(correct)
    return Score(accuracy, centred(accuracy, task.chance), len(correct))


def core_metric(scores: Mapping[str, Score]) -> float:
    """Return CORE: the mean centred accuracy."""
    return sum(score.centred for score in scores.values()) / len(scores)


def core_evaluation(tasks: Sequence[CoreTask], max_items: int | None = None) -> Evaluation:
    """Describe CORE over these tasks, each over at most `max_items` of its items.

    The figures are `core`, and under `core_tasks` every task's `Score`.

    Raises:
        ValueError: there are no tasks.
        FileNotFoundError, ValueError: as `read_items`; all files are read before the first call.
    """
    if not tasks:
        raise ValueError("CORE needs at least one task")
    parts = [
        (task, indices)
        for task in tasks
        for indices in chunks(chosen(len(read_items(task)), max_items), ITEMS_PER_CALL)
    ]

    def finish(results: list[list[bool]]) -> dict[str, Any]:
        correct: dict[str, list[bool]] = {task.label: [] for task in tasks}
        for (task, _), result in zip(parts, results, strict=True):
            correct[task.label] += result
        scores = {task.label: score(task, correct[task.label]) for task in tasks}
        return {"core": core_metric(scores), "core_tasks": {label: s._asdict() for label, s in scores.items()}}

    return Evaluation("CORE", [functools.partial(_call, task=task, indices=indices) for task, indices in parts], finish)


def _call(loaded: LoadedModel, task: CoreTask, indices: Sequence[int]) -> list[bool]:
    return evaluate_items(loaded.model, loaded.tokenizer, task, indices)

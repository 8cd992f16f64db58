"""CORE: few-shot tasks for base models.

Every item is a few candidate texts, of which one is right. A prompt is the BOS, the few-shot examples, then the
candidate, joined by blank lines. The candidates of `multiple_choice` share the context, those of `schema` the
continuation. The candidate with the lowest mean loss wins, over the tokens that differ in `multiple_choice` and over
the continuation in `schema`. The one candidate of `language_modeling` is right when greedy decoding gives its
continuation.

Source: DCLM, arXiv:2406.11794.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from raychat.evals.bundle import CoreTask, Item, read_items
from raychat.evals.evaluation import SEED, Evaluation, LoadedModel, chosen, over_tasks
from raychat.evals.scoring import logits_of
from raychat.model.base import Model
from raychat.model.loss import token_nll
from raychat.tokenizer import Tokenizer

BATCH_TOKENS = 8192

Rows = list[list[int]]  # one candidate's token ids each


class Score(NamedTuple):
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


def _num_scored(kind: str, rows: Rows, contexts: Rows) -> list[int]:
    """Return how many tokens to score at the end of each candidate, given also the candidates' contexts alone."""
    if kind == "multiple_choice":
        start = shared_prefix(rows)
        return [len(row) - start for row in rows]
    continuations = [len(row) - shared_prefix([row, context]) for row, context in zip(rows, contexts, strict=True)]
    if kind == "schema":  # contexts may end alike, too
        return [min(shared_prefix([row[::-1] for row in rows]), *continuations)] * len(rows)
    return continuations


def prompts(task: CoreTask, items: Sequence[Item], index: int) -> tuple[list[str], list[str]]:
    """Return the texts of an item's candidates with their few-shot examples, and the same without the continuation.

    The examples are drawn from all other items, with a seed of the item's own.
    """
    others = range(len(items) - 1)
    drawn = random.Random(f"{SEED}/{task.label}/{index}").sample(others, min(task.num_fewshot, len(others)))
    examples = [items[i + (i >= index)] for i in drawn]  # steps over the item itself
    shots = "".join(_text(task, example, example.gold) + "\n\n" for example in examples)
    item = items[index]
    full = [shots + _text(task, item, i) for i in range(len(item.contexts))]
    # Without trailing blanks: they belong to the first token of the continuation.
    return full, [shots + f"{context}{task.delimiter}".rstrip() for context in item.contexts]


def _text(task: CoreTask, item: Item, candidate: int) -> str:
    return f"{item.contexts[candidate]}{task.delimiter}{item.continuations[candidate]}"


def candidate_rows(task: CoreTask, items: Sequence[Item], index: int, tokenizer: Tokenizer) -> tuple[Rows, list[int]]:
    """Return the token ids of an item's candidates, and how many at the end of each to score (at least one)."""
    full, bare = ([[tokenizer.bos, *tokenizer.encode(text)] for text in texts] for texts in prompts(task, items, index))
    counts = _num_scored(task.kind, full, bare)
    return full, [min(max(count, 1), len(row) - 1) for count, row in zip(counts, full, strict=True)]


def evaluate_items(
    loaded: LoadedModel, task: CoreTask, indices: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> list[bool]:
    """Return for each of these items whether the model is right. Candidates longer than its context keep their tail."""
    items, context = read_items(task), loaded.model.config.sequence_len
    candidates = [candidate_rows(task, items, index, loaded.tokenizer) for index in indices]
    rows = [row[-context:] for of_item, _ in candidates for row in of_item]
    counts = [min(count, context - 1) for _, of_item in candidates for count in of_item]
    losses, greedy = _score_rows(loaded.model, rows, counts, batch_tokens)
    correct, start = [], 0
    for index in indices:
        end = start + len(items[index].contexts)
        best = losses.index(min(losses[start:end]), start)
        correct.append(best == start + items[index].gold if end - start > 1 else greedy[start])
        start = end
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
    """Score a task by which of its items are correct."""
    if not correct:
        raise ValueError(f"task {task.label}: no items to score in {task.file}")
    accuracy = sum(correct) / len(correct)
    return Score(accuracy, centred(accuracy, task.chance), len(correct))


def core_evaluation(tasks: Sequence[CoreTask], max_items: int | None = None) -> Evaluation:
    """Describe CORE, the mean centred accuracy, over these tasks, each over at most `max_items` of its items.

    The figures are `core`, and under `core_tasks` every task's `Score`. All files are read before the first call.
    """
    if not tasks:
        raise ValueError("CORE needs at least one task")

    def figures(correct: dict[CoreTask, list[bool]]) -> dict[str, Any]:
        scores = {task.label: score(task, correct[task]) for task in tasks}
        core = sum(s.centred for s in scores.values()) / len(scores)
        return {"core": core, "core_tasks": {label: s._asdict() for label, s in scores.items()}}

    items = {task: chosen(len(read_items(task)), max_items) for task in tasks}
    return over_tasks("CORE", items, evaluate_items, figures)

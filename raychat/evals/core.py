"""CORE: few-shot tasks for base models.

Every item is a few candidate texts, of which one is right. A prompt is the BOS, the few-shot examples, then the
candidate, joined by blank lines. The candidates of `multiple_choice` share the context, those of `schema` the
continuation. The candidate with the lowest mean loss wins, over the tokens that differ in `multiple_choice` and over
the continuation in `schema`. The one candidate of `language_modeling` is right when greedy decoding gives its
continuation.

Source: DCLM, arXiv:2406.11794.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from raychat.evals import accuracy
from raychat.evals.bundle import CoreTask, Item, read_items
from raychat.evals.evaluation import Evaluation, LoadedModel, chosen, over_tasks, parts_of
from raychat.evals.protocol import OWN, Protocol
from raychat.evals.scoring import predictions
from raychat.model.base import Model
from raychat.model.branches import shared_prefix
from raychat.model.loss import token_nll
from raychat.tokenizer import Tokenizer

ITEMS_PER_CALL = 128
TOKENS_PER_EXAMPLE = 50  # roughly

Rows = list[list[int]]  # one candidate's token ids each


class Judged(NamedTuple):
    """What the model makes of a candidate; the one with the lowest loss is its choice."""

    loss: float  # nats per token
    greedy: bool  # whether greedy decoding gives these tokens


class Score(NamedTuple):
    accuracy: float
    centred: float  # 0 = guessing, 1 = perfect
    num_items: int


def _num_scored(kind: str, rows: Rows, contexts: Rows) -> list[int]:
    """Return how many tokens to score at the end of each candidate, given also the candidates' contexts alone."""
    if kind == "multiple_choice":
        start = shared_prefix(rows)
        return [len(row) - start for row in rows]
    continuations = [len(row) - shared_prefix([row, context]) for row, context in zip(rows, contexts, strict=True)]
    if kind == "schema":  # contexts may end alike, too
        return [min(shared_prefix([row[::-1] for row in rows]), *continuations)] * len(rows)
    return continuations


def prompts(task: CoreTask, items: Sequence[Item], index: int, protocol: Protocol = OWN) -> tuple[list[str], list[str]]:
    """Return the texts of an item's candidates with their few-shot examples, and the same without the continuation.

    The examples are drawn from all other items, with a seed of the item's own.
    """
    others = range(len(items) - 1)
    drawn = random.Random(protocol.seed(task.label, index)).sample(others, min(task.num_fewshot, len(others)))
    examples = [items[i + (i >= index)] for i in drawn]  # steps over the item itself
    shots = "".join(_text(task, example, example.gold) + "\n\n" for example in examples)
    item = items[index]
    full = [shots + _text(task, item, i) for i in range(len(item.contexts))]
    # Without trailing blanks: they belong to the first token of the continuation.
    return full, [shots + f"{context}{task.delimiter}".rstrip() for context in item.contexts]


def _text(task: CoreTask, item: Item, candidate: int) -> str:
    return f"{item.contexts[candidate]}{task.delimiter}{item.continuations[candidate]}"


def candidate_rows(
    task: CoreTask, items: Sequence[Item], index: int, tokenizer: Tokenizer, protocol: Protocol = OWN
) -> tuple[Rows, list[int]]:
    """Return the token ids of an item's candidates, and how many at the end of each to score (at least one)."""
    both = prompts(task, items, index, protocol)
    full, bare = ([[tokenizer.bos, *tokenizer.encode(text)] for text in texts] for texts in both)
    counts = _num_scored(task.kind, full, bare)
    return full, [min(max(count, 1), len(row) - 1) for count, row in zip(counts, full, strict=True)]


def evaluate_items(
    loaded: LoadedModel,
    task: CoreTask,
    indices: Sequence[int],
    batch_tokens: int | None = None,
    protocol: Protocol = OWN,
    max_items: int | None = None,
) -> list[bool]:
    """Return for each of these items whether the model is right. Candidates longer than its context keep their tail.

    Args:
        indices: in the protocol's pool of at most `max_items` items.
    """
    items, context = protocol.pool(read_items(task), max_items), loaded.model.config.sequence_len
    candidates = [candidate_rows(task, items, index, loaded.tokenizer, protocol) for index in indices]
    rows = [[row[-context:] for row in of_item] for of_item, _ in candidates]
    counts = [[min(count, context - 1) for count in of_item] for _, of_item in candidates]
    judged = judge(loaded.model, rows, counts, batch_tokens)
    return [
        of_item.index(min(of_item)) == items[index].gold if len(of_item) > 1 else of_item[0].greedy
        for index, of_item in zip(indices, judged, strict=True)
    ]


def judge(
    model: Model, rows: Sequence[Rows], counts: Sequence[Sequence[int]], batch_tokens: int | None = None
) -> list[list[Judged]]:
    """Judge each item's candidates by the last `count` tokens of each."""
    judged: dict[tuple[int, int], Judged] = {}
    for sequences, logits in predictions(model, [[row[:-1] for row in r] for r in rows], counts, batch_tokens):
        ends = [rows[item][i][-counts[item][i] :] for item, i in sequences]
        targets, sizes = torch.tensor(list(chain.from_iterable(ends))).to(logits.device), [len(end) for end in ends]
        losses = torch.stack([x.mean() for x in token_nll(logits[None], targets[None])[0].split(sizes)])
        greedy = torch.stack([x.all() for x in (logits.argmax(-1) == targets).split(sizes)])
        judged |= dict(zip(sequences, map(Judged, losses.tolist(), greedy.tolist()), strict=True))
    return [[judged[item, i] for i in range(len(of_item))] for item, of_item in enumerate(rows)]


def score(task: CoreTask, correct: Sequence[bool]) -> Score:
    """Score a task by which of its items are correct."""
    if not correct:
        raise ValueError(f"task {task.label}: no items to score in {task.file}")
    share = accuracy.mean(correct)
    return Score(share, accuracy.centred(share, task.chance), len(correct))


def core_evaluation(
    tasks: Sequence[CoreTask],
    max_items: int | None = None,
    protocol: Protocol = OWN,
    items_per_call: int = ITEMS_PER_CALL,
) -> Evaluation:
    """Describe CORE, the mean centred accuracy, over these tasks, each over at most `max_items` of its items.

    The figures are those of `accuracy.figures`, for `core`, and under `core_tasks` every task's `Score`. All files are
    read before the first call.
    """
    if not tasks:
        raise ValueError("CORE needs at least one task")

    def figures(correct: dict[CoreTask, list[bool]]) -> dict[str, Any]:
        scores = {task.label: score(task, correct[task])._asdict() for task in tasks}
        outcomes = {task.label: [int(right) for right in correct[task]] for task in tasks}
        return {"core_tasks": scores, **accuracy.figures("core", outcomes, {task.label: task.chance for task in tasks})}

    items = {task: chosen(len(protocol.pool(read_items(task), max_items)), max_items) for task in tasks}
    calls = [call for task in tasks for call in parts_of({task: items[task]}, items_per_call)]
    label: Callable[[CoreTask], str] = attrgetter("label")
    run = partial(_evaluate, protocol=protocol, max_items=max_items)
    return over_tasks("CORE", calls, run, figures, label=label, cost=_tokens_per_item)


def texts(tasks: Sequence[CoreTask], max_items: int | None = None, protocol: Protocol = OWN) -> dict[str, list[str]]:
    """Return by task the right candidates of the items that `core_evaluation` chooses, without examples."""
    return {
        task.label: [_text(task, items[index], items[index].gold) for index in chosen(len(items), max_items)]
        for task, items in ((task, protocol.pool(read_items(task), max_items)) for task in tasks)
    }


def _evaluate(
    loaded: LoadedModel, parts: Sequence[tuple[CoreTask, Sequence[int]]], protocol: Protocol, max_items: int | None
) -> list[list[bool]]:
    return [evaluate_items(loaded, task, i, protocol=protocol, max_items=max_items) for task, i in parts]


def _tokens_per_item(task: CoreTask) -> float:
    return TOKENS_PER_EXAMPLE * (task.num_fewshot + 1)

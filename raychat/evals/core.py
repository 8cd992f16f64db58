"""CORE: few-shot tasks that a base model can do, from a bundle of files in the layout of DCLM (arXiv:2406.11794).

A bundle is a folder with
    core.yaml              icl_tasks: label, dataset_uri, num_fewshot: [n], icl_task_type, continuation_delimiter (" ")
    eval_meta_data.csv     "Eval Task" and "Random baseline", the accuracy of guessing in percent
    eval_data/<uri>        one JSON object a line

Every item is a few candidate texts, each a context and a continuation, one of them right. A prompt is the BOS, the
few-shot examples, then the candidate, joined by blank lines. The candidates of `multiple_choice` share the context and
those of `schema` the continuation: the lowest mean loss wins, over the tokens that are not shared and those that are.
The one candidate of `language_modeling` is right when every token of its continuation is the model's first choice.
"""

import csv
import functools
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import yaml

from raychat import paths
from raychat.evals.evaluation import Evaluation, LoadedModel, pieces
from raychat.evals.scoring import logits_of
from raychat.model.base import Model
from raychat.model.loss import token_nll
from raychat.tokenizer import Tokenizer

SEED = 1234
BATCH_TOKENS = 8192
PIECE = 32  # items


class Item(NamedTuple):
    """Candidates (context, continuation), of which number `gold` is right."""

    contexts: list[str]
    continuations: list[str]
    gold: int


Rows = list[list[int]]


class Kind(NamedTuple):
    """A type of task: how to read its items, and which tokens of its candidates are judged."""

    parse: Callable[[dict[str, Any]], Item]
    num_scored: Callable[[Rows, Rows], list[int]]  # (candidates, their contexts alone) -> tokens judged, from the end


class CoreTask(NamedTuple):
    """A task of a bundle."""

    label: str
    kind: str
    file: str  # path or URL of its items
    num_fewshot: int
    delimiter: str  # between context and continuation
    chance: float  # accuracy of guessing, 0 to 1


class Score(NamedTuple):
    accuracy: float
    centred: float  # 0 = guessing, 1 = perfect
    num_items: int


# ---------------------------------------------------------------------------------------------- kinds of tasks


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


KINDS = {
    "multiple_choice": Kind(
        lambda row: Item([row["query"]] * len(row["choices"]), list(row["choices"]), int(row["gold"])),
        _after_shared_prefix,
    ),
    "schema": Kind(
        lambda row: Item(
            list(row["context_options"]), [row["continuation"]] * len(row["context_options"]), int(row["gold"])
        ),
        _shared_suffix,
    ),
    "language_modeling": Kind(lambda row: Item([row["context"].strip()], [row["continuation"]], 0), _after_context),
}


# ---------------------------------------------------------------------------------------------- reading a bundle


def load_bundle(folder: str, labels: Sequence[str] | None = None) -> list[CoreTask]:
    """Read the tasks of a bundle, in its order; `labels` None means all of them.

    Raises:
        FileNotFoundError: core.yaml or eval_meta_data.csv is not there.
        ValueError: a label that is not there, a task of unknown type, or one without its random baseline.
    """
    config = yaml.safe_load(_read(folder, "core.yaml"))
    table = csv.DictReader(io.StringIO(_read(folder, "eval_meta_data.csv")))
    chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in table}
    found = {entry["label"]: entry for entry in config["icl_tasks"]}
    unknown = [label for label in labels or () if label not in found]
    if unknown:
        raise ValueError(f"{folder} has no task {', '.join(unknown)}; it has {', '.join(found)}")
    return [_task(folder, entry, chance) for label, entry in found.items() if labels is None or label in labels]


def _read(folder: str, name: str) -> str:
    try:
        return paths.read_text(paths.join(folder, name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} is no CORE bundle: it has no {name}; expected core.yaml, eval_meta_data.csv and eval_data/"
        ) from None


def _task(folder: str, entry: dict[str, Any], chance: dict[str, float]) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in KINDS:
        raise ValueError(f"task {label} of {folder} has icl_task_type {kind!r}; expected one of {', '.join(KINDS)}")
    if label not in chance:
        raise ValueError(f"task {label} of {folder} has no random baseline in eval_meta_data.csv")
    file = paths.join(folder, "eval_data", *entry["dataset_uri"].split("/"))
    delimiter = entry.get("continuation_delimiter", " ")
    return CoreTask(label, kind, file, int(entry["num_fewshot"][0]), delimiter, chance[label])


@functools.lru_cache(maxsize=32)
def read_items(task: CoreTask) -> tuple[Item, ...]:
    """Read all items of a task. Raises FileNotFoundError, or ValueError naming the line that is not an item."""
    try:
        lines = paths.read_text(task.file).splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"task {task.label}: its items are not there: {task.file}") from None
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = KINDS[task.kind].parse(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{task.file}, line {number}: not an item of type {task.kind}: {e!r}") from e
        if not 0 <= item.gold < len(item.contexts):
            raise ValueError(f"{task.file}, line {number}: gold is {item.gold}, of {len(item.contexts)} candidates")
        items.append(item)
    return tuple(items)


def chosen(num_items: int, max_items: int | None) -> list[int]:
    """Return which items are evaluated: all, or the same `max_items` of them every time (fewer are a part of more).

    >>> set(chosen(100, 5)) < set(chosen(100, 10))
    True
    """
    order = list(range(num_items))
    random.Random(SEED).shuffle(order)
    return sorted(order[:max_items])


# ---------------------------------------------------------------------------------------------- judging


def prompts(task: CoreTask, items: Sequence[Item], index: int) -> tuple[list[str], list[str]]:
    """Return the texts of an item's candidates with their few-shot examples, and the same without the continuation.

    The examples are drawn with a seed of the item's own from all other items.
    """
    others = range(len(items) - 1)
    drawn = random.Random(f"{SEED}/{task.label}/{index}").sample(others, min(task.num_fewshot, len(others)))
    examples = [items[i + (i >= index)] for i in drawn]  # steps over the item itself
    shots = [_text(task, example, example.gold) for example in examples]
    item = items[index]
    full = [_text(task, item, i) for i in range(len(item.contexts))]
    # Without its last blanks, which belong to the first token of the continuation.
    bare = [f"{context}{task.delimiter}".rstrip() for context in item.contexts]
    return ["\n\n".join([*shots, text]) for text in full], ["\n\n".join([*shots, text]) for text in bare]


def _text(task: CoreTask, item: Item, candidate: int) -> str:
    return f"{item.contexts[candidate]}{task.delimiter}{item.continuations[candidate]}"


def candidate_rows(task: CoreTask, items: Sequence[Item], index: int, tokenizer: Tokenizer) -> tuple[Rows, list[int]]:
    """Return an item's candidates as tokens, and how many tokens at the end of each are judged (at least one)."""
    full, bare = ([[tokenizer.bos, *tokenizer.encode(text)] for text in texts] for texts in prompts(task, items, index))
    counts = KINDS[task.kind].num_scored(full, bare)
    return full, [min(max(count, 1), len(row) - 1) for count, row in zip(counts, full, strict=True)]


def evaluate_items(
    model: Model, tokenizer: Tokenizer, task: CoreTask, indices: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> list[bool]:
    """Return for each of these items of a task whether the model gets it right.

    Candidates longer than the model's context keep their tail.
    """
    items = read_items(task)
    context = model.config.sequence_len
    rows: Rows = []
    counts: list[int] = []
    owners: list[slice] = []
    for index in indices:
        candidates, judged = candidate_rows(task, items, index, tokenizer)
        owners.append(slice(len(rows), len(rows) + len(candidates)))
        rows += [row[-context:] for row in candidates]
        counts += [min(count, context - 1) for count in judged]
    losses, firsts = _judge(model, rows, counts, batch_tokens)
    verdicts = []
    for index, owned in zip(indices, owners, strict=True):
        here = losses[owned]
        verdicts.append(here.index(min(here)) == items[index].gold if len(here) > 1 else firsts[owned.start])
    return verdicts


def _judge(model: Model, rows: Rows, counts: list[int], batch_tokens: int) -> tuple[list[float], list[bool]]:
    """Return each row's mean loss over its last `count` tokens, and whether each of them was the first choice."""
    losses, firsts = [0.0] * len(rows), [False] * len(rows)
    for number, logits in logits_of(model, rows, batch_tokens):
        count = counts[number]
        predictions = logits[-count - 1 : -1].unsqueeze(0)  # (1, count, V)
        targets = torch.tensor([rows[number][-count:]], device=predictions.device)
        losses[number] = token_nll(predictions, targets).mean().item()
        firsts[number] = bool((predictions.argmax(-1) == targets).all())
    return losses, firsts


def centred(accuracy: float, chance: float) -> float:
    """Scale an accuracy so that guessing is 0 and perfection 1."""
    return (accuracy - chance) / (1 - chance)


def score(task: CoreTask, verdicts: Sequence[bool]) -> Score:
    """Sum verdicts up. Raises ValueError where there are none."""
    if not verdicts:
        raise ValueError(f"task {task.label}: no items to judge in {task.file}")
    accuracy = sum(verdicts) / len(verdicts)
    return Score(accuracy, centred(accuracy, task.chance), len(verdicts))


def core_metric(scores: Mapping[str, Score]) -> float:
    """Return CORE: the mean centred accuracy."""
    return sum(score.centred for score in scores.values()) / len(scores)


def evaluation(tasks: Sequence[CoreTask], max_items: int | None = None) -> Evaluation:
    """Describe CORE over these tasks, each over at most `max_items` of its items.

    It gives `core`, and every task's `Score` under `core_tasks`.
    Raises ValueError without tasks, and what `read_items` raises: all files are looked at before any work is done.
    """
    if not tasks:
        raise ValueError("CORE needs at least one task")
    taken = [(task, piece) for task in tasks for piece in pieces(chosen(len(read_items(task)), max_items), PIECE)]

    def finish(results: list[list[bool]]) -> dict[str, Any]:
        verdicts: dict[str, list[bool]] = {task.label: [] for task in tasks}
        for (task, _), right in zip(taken, results, strict=True):
            verdicts[task.label] += right
        scores = {task.label: score(task, verdicts[task.label]) for task in tasks}
        return {"core": core_metric(scores), "core_tasks": {label: s._asdict() for label, s in scores.items()}}

    return Evaluation("CORE", [functools.partial(_piece, task=task, indices=piece) for task, piece in taken], finish)


def _piece(loaded: LoadedModel, task: CoreTask, indices: Sequence[int]) -> list[bool]:
    return evaluate_items(loaded.model, loaded.tokenizer, task, indices)

"""Write the small world to a folder: the same seed and scale give the same bytes."""

import gzip
import io
import json
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raychat import paths
from raychat.tinyworld import bundle
from raychat.tinyworld.chats import chats
from raychat.tinyworld.documents import documents
from raychat.tinyworld.functions import human_eval
from raychat.tinyworld.problems import problems
from raychat.tinyworld.questions import CHALLENGE, EASY, GENERAL, LETTERS, ChoiceQuestion, Makers, questions
from raychat.tinyworld.words import spelling_words
from raychat.tinyworld.world import TinyWorld

T = TypeVar("T")

VERSION = 11  # of the generator: raise it when the bytes change, so that older folders are written again
DONE = "meta.json"  # written last

NUM_SHARDS = 8  # of which the last is validation
SHARD_CHARS = 800_000
ROW_GROUP_DOCUMENTS = 250
NUM_TRAIN = {"chat": 12_000, "gsm8k": 1000, "ARC-Easy": 6000, "ARC-Challenge": 2000, "mmlu": 4000}
NUM_TEST = {"chat": 200, "gsm8k": 400, "ARC-Easy": 400, "ARC-Challenge": 300, "mmlu": 400, "bundle": 100}


def write(folder: str, seed: int = 0, scale: float = 1.0) -> None:
    """Write the whole world of `seed` to a local folder (or URL), which may hold an older one.

    `scale` multiplies the amount of pretraining text and of training problems; the test sets keep their sizes.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"the scale should be above 0, got {scale}")
    paths.remove(paths.join(folder, DONE))
    world = TinyWorld(seed)
    for name, data in _files(world, scale):
        paths.write_bytes(paths.join(folder, *name.split("/")), data)
    paths.write_json(paths.join(folder, DONE), {"tinyworld": VERSION, "seed": seed, "scale": scale})


def complete(folder: str) -> bool:
    """Tell whether `folder` holds a whole small world written by this version of the generator."""
    path = paths.join(folder, DONE)
    return paths.exists(path) and paths.read_json(path).get("tinyworld") == VERSION


def _files(world: TinyWorld, scale: float) -> Iterator[tuple[str, bytes]]:
    """Yield every file's name and content. Each set has its own random stream, so that none depends on another."""
    for index, texts in enumerate(_shards(world, scale)):
        yield f"pretrain/shard_{index:05d}.parquet", _parquet(texts)
    for split, test in (("train", False), ("test", True)):
        num = NUM_TEST if test else {name: max(1, round(num * scale)) for name, num in NUM_TRAIN.items()}
        messages = chats(world, _stream(world, f"chat {test}"), test=test)
        yield f"chat/{split}.jsonl", _json_lines({"messages": m} for m in islice(messages, num["chat"]))
        solved = _distinct(
            problems(world, _stream(world, f"gsm8k {test}"), test=test), lambda problem: problem.question
        )
        yield f"gsm8k/{split}.jsonl", _json_lines(problem._asdict() for problem in islice(solved, num["gsm8k"]))
        for subset, makers in (("ARC-Easy", EASY), ("ARC-Challenge", CHALLENGE)):
            found = _questions(world, subset, makers, num[subset], test)
            rows = (_arc_row(f"{subset.lower()}-{split}-{i}", question) for i, question in enumerate(found))
            yield f"ai2_arc/{subset}/{split}.jsonl", _json_lines(rows)
        name = "test" if test else "auxiliary_train"
        yield f"mmlu/{name}.jsonl", _json_lines(map(_mmlu_row, _questions(world, "mmlu", GENERAL, num["mmlu"], test)))
    yield "humaneval/HumanEval.jsonl.gz", gzip.compress(_json_lines(human_eval()), mtime=0)
    yield "spelling/words.txt", "".join(f"{word}\n" for word in spelling_words()).encode()
    yield "eval_bundle/core.yaml", yaml.safe_dump(bundle.config(), sort_keys=False).encode()
    yield "eval_bundle/eval_meta_data.csv", bundle.chances().encode()
    for task in bundle.TASKS:
        items = islice(task.items(world, _stream(world, task.label)), 20 * NUM_TEST["bundle"])  # in case too few differ
        yield f"eval_bundle/eval_data/{task.uri}", _json_lines(islice(_distinct(items, str), NUM_TEST["bundle"]))


def _stream(world: TinyWorld, name: str) -> random.Random:
    return random.Random(f"tinyworld {name} {world.seed}")


def _distinct(items: Iterable[T], key: Callable[[T], Hashable], seen: set[Hashable] | None = None) -> Iterator[T]:
    """Yield the items whose key is new. Keys are added to `seen`."""
    seen = set() if seen is None else seen
    for item in items:
        if (found := key(item)) not in seen:
            seen.add(found)
            yield item


def _shards(world: TinyWorld, scale: float) -> Iterator[list[str]]:
    """Yield the documents of every shard, no document twice."""
    seen: set[Hashable] = set()
    for index in range(NUM_SHARDS):
        texts, chars = [], 0
        for text in _distinct(documents(world, _stream(world, f"text {index}")), str, seen):
            texts.append(text)
            chars += len(text)
            if chars >= SHARD_CHARS * scale:
                break
        yield texts


def _parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"text": texts})
    pq.write_table(table, buffer, row_group_size=ROW_GROUP_DOCUMENTS, compression="zstd")
    return buffer.getvalue()


def _json_lines(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _questions(world: TinyWorld, name: str, makers: Makers, num: int, test: bool) -> Iterator[ChoiceQuestion]:
    """Yield the first `num` questions that differ in text or choices."""
    drawn = questions(world, _stream(world, f"{name} {test}"), makers, test=test)
    return islice(_distinct(drawn, lambda question: (question.text, frozenset(question.choices))), num)


def _arc_row(name: str, question: ChoiceQuestion) -> dict[str, Any]:
    choices = {"text": list(question.choices), "label": list(LETTERS)}
    return {"id": name, "question": question.text, "choices": choices, "answerKey": question.answer}


def _mmlu_row(question: ChoiceQuestion) -> dict[str, Any]:
    row = {"question": question.text, "subject": question.subject, "choices": list(question.choices)}
    return row | {"answer": LETTERS.index(question.answer)}

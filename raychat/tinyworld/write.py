"""Write the small world to a folder, byte for byte the same for the same seed and scale."""

import gzip
import io
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raychat import paths
from raychat.tinyworld import bundle, functions
from raychat.tinyworld import words as w
from raychat.tinyworld.problems import problems
from raychat.tinyworld.questions import CHALLENGE, EASY, GENERAL, LETTERS, Maker, Question, distinct, draw
from raychat.tinyworld.talks import conversations
from raychat.tinyworld.text import documents
from raychat.tinyworld.world import World

VERSION = 7  # of the generator: raise it whenever the bytes change, so that older folders are written again
DONE = "meta.json"  # written last

NUM_SHARDS = 8  # of which the last is validation
SHARD_CHARS = 800_000
ROW_GROUP_DOCUMENTS = 250
NUM_TRAIN = {"chat": 4000, "gsm8k": 1000, "ARC-Easy": 6000, "ARC-Challenge": 2000, "mmlu": 4000}
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
    world = World(seed)
    for name, data in _files(world, scale):
        paths.write_bytes(paths.join(folder, *name.split("/")), data)
    paths.write_json(paths.join(folder, DONE), {"tinyworld": VERSION, "seed": seed, "scale": scale})


def complete(folder: str) -> bool:
    """Tell whether `folder` holds a whole small world written by this version of the generator."""
    path = paths.join(folder, DONE)
    return paths.exists(path) and paths.read_json(path).get("tinyworld") == VERSION


def _files(world: World, scale: float) -> Iterator[tuple[str, bytes]]:
    """Yield every file's name and content. Each set has its own random stream, so that none depends on another."""
    for index, texts in enumerate(_shards(world, scale)):
        yield f"pretrain/shard_{index:05d}.parquet", _parquet(texts)
    for split, test in (("train", False), ("test", True)):
        yield f"chat/{split}.jsonl", _json_lines({"messages": m} for m in _chats(world, scale, test))
        yield f"gsm8k/{split}.jsonl", _json_lines(_problems(world, scale, test))
        for subset, makers in (("ARC-Easy", EASY), ("ARC-Challenge", CHALLENGE)):
            questions = _questions(world, subset, makers, scale, test)
            rows = (_arc_row(f"{subset.lower()}-{split}-{i}", question) for i, question in enumerate(questions))
            yield f"ai2_arc/{subset}/{split}.jsonl", _json_lines(rows)
        name = "test" if test else "auxiliary_train"
        yield f"mmlu/{name}.jsonl", _json_lines(map(_mmlu_row, _questions(world, "mmlu", GENERAL, scale, test)))
    yield "humaneval/HumanEval.jsonl.gz", gzip.compress(_json_lines(functions.human_eval()), mtime=0)
    yield "spelling/words.txt", "".join(f"{word}\n" for word in w.WORDS).encode()
    yield "eval_bundle/core.yaml", yaml.safe_dump(bundle.config(), sort_keys=False).encode()
    yield "eval_bundle/eval_meta_data.csv", bundle.chances().encode()
    for task in bundle.TASKS:
        items = bundle.items(task, world, _stream(world, task.label), NUM_TEST["bundle"])
        yield f"eval_bundle/eval_data/{task.uri}", _json_lines(items)


def _stream(world: World, name: str) -> random.Random:
    return random.Random(f"tinyworld {name} {world.seed}")


def _shards(world: World, scale: float) -> Iterator[list[str]]:
    """Yield the documents of every shard; no document is in two of them."""
    seen: set[str] = set()
    for index in range(NUM_SHARDS):
        texts, chars = [], 0
        for text in documents(world, _stream(world, f"text {index}"), seen):
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


def _num(name: str, scale: float, test: bool) -> int:
    return NUM_TEST[name] if test else max(1, round(NUM_TRAIN[name] * scale))


def _chats(world: World, scale: float, test: bool) -> Iterator[list[dict[str, str]]]:
    return islice(conversations(world, _stream(world, f"chat {test}"), test=test), _num("chat", scale, test))


def _problems(world: World, scale: float, test: bool) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    num = _num("gsm8k", scale, test)
    for problem in problems(world, _stream(world, f"gsm8k {test}"), test=test):
        if problem.question in seen:
            continue
        seen.add(problem.question)
        yield {"question": problem.question, "answer": problem.answer}
        if len(seen) == num:
            return


def _questions(
    world: World, name: str, makers: tuple[tuple[Maker, int], ...], scale: float, test: bool
) -> list[Question]:
    return distinct(draw(world, _stream(world, f"{name} {test}"), makers, test=test), _num(name, scale, test))


def _arc_row(name: str, question: Question) -> dict[str, Any]:
    choices = {"text": list(question.choices), "label": list(LETTERS)}
    return {"id": name, "question": question.text, "choices": choices, "answerKey": LETTERS[question.answer]}


def _mmlu_row(question: Question) -> dict[str, Any]:
    row = {"question": question.text, "subject": question.subject, "choices": list(question.choices)}
    return row | {"answer": question.answer}

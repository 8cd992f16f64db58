"""Which items are found in training text, against a slow search in it."""

import json
import random
from contextlib import closing
from pathlib import Path

import pytest

from raychat.actors import InProcess
from raychat.cluster import Cluster
from raychat.cluster.map import actors_per_core
from raychat.data import reading
from raychat.evals import contamination

WORDS = ["cat", "mat", "sat", "hat", "flat", "rat"]  # few, so that parts of n-grams are common


def text(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choices(WORDS, k=num_words))


@pytest.fixture
def documents() -> list[str]:
    draw = random.Random(0)
    return [text(draw, draw.randrange(5, 200)) for _ in range(60)]


def blocks_of(folder: Path, documents: list[str]) -> list[reading.DocumentBlock]:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return reading.blocks([str(folder / "a.jsonl")], min_bytes=2000)


def holds(documents: list[str], item: str, n: int) -> bool:
    words = item.split()
    n = min(n, len(words))
    grams = {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
    return any(f" {gram} " in f" {document} " for gram in grams for document in documents)


def items_of(documents: list[str]) -> list[str]:
    """Items of which some are in the documents, whole or in part."""
    draw = random.Random(1)
    inside = [" ".join(draw.choice(documents).split()[3 : 3 + draw.randrange(8, 20)]) for _ in range(40)]
    items = [item for item in inside if len(item.split()) >= 8]
    return items + [f"{text(draw, 10)} {item} {text(draw, 10)}" for item in items] + [text(draw, 30) for _ in range(30)]


@pytest.mark.parametrize("n", [8, 9, 13])
def test_items_are_found_as_by_a_slow_search(tmp_path: Path, documents: list[str], n: int) -> None:
    items = items_of(documents)
    expected = [holds(documents, item, n) for item in items]
    assert len(set(expected)) == 2
    blocks = blocks_of(tmp_path, documents)
    assert len(blocks) > 1
    found = contamination.find({"t": items, "none": []}, blocks, InProcess(type(None)), n)
    assert found == {"t": expected, "none": []}


@pytest.mark.ray
def test_actors_find_them_over_ray(tmp_path: Path, documents: list[str], ray_cluster: None) -> None:
    items, blocks = items_of(documents), blocks_of(tmp_path, documents)
    with closing(actors_per_core(Cluster(gpus_per_worker=0), len(blocks), name="scan")) as actors:
        found = contamination.find({"t": items}, blocks, actors, 9)
    assert found == {"t": [holds(documents, item, 9) for item in items]}


def test_case_and_punctuation_do_not_matter_and_documents_are_not_joined(tmp_path: Path) -> None:
    blocks = blocks_of(tmp_path, ["The cat, the mat: it sat -- in a flat", "hat. And so on for ever and ever"])
    items = ["the CAT the mat; it sat in a flat!", "mat it sat in a flat hat and so", "in a flat"]
    found = contamination.find({"t": items}, blocks, InProcess(type(None)), 8)
    assert found == {"t": [True, False, None]}  # the last is too short to be checked


def test_short_ngrams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 7 words; expected 8 or more"):
        contamination.find({}, [], InProcess(type(None)), 7)

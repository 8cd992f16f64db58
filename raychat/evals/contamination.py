"""Contamination: which evaluation items share an n-gram of words with the training text.

Text counts as its words, without case and punctuation. An item of fewer words than an n-gram is looked for as a whole,
if it has at least `MIN_WORDS`; a shorter one is not checked, since common phrases would hit it.

Source: GPT-3, arXiv:2005.14165, appendix C.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raychat.actors import Actors
from raychat.data import corpus, reading
from raychat.evals.accuracy import mean
from raychat.evals.evaluation import Evaluation
from raychat.intervals import draws_of_mean, interval
from raychat.log import Progress
from raychat.recipe import Recipe

MIN_WORDS = 8
WORD = re.compile(r"\w+")
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)  # odd constants of splitmix64
_BREAK = 0  # in place of a word that no item has, and between documents

Hashes = NDArray[np.uint64]
Hits = dict[
    str, list[bool | None]
]  # by task, for each item: whether it is contaminated; None = too short to be checked


def training_shards(recipe: Recipe, storage: str) -> list[str]:
    """Return the shards that a base stage was trained on. A corpus of one text is returned whole."""
    num = recipe.num_shards or corpus.shards_needed(recipe.data, (recipe.steps or 0) * recipe.batch_tokens)
    shards = corpus.shards(recipe.data, storage, num)
    return shards if corpus.one_text(shards) else corpus.split(shards)[0]


def checked(
    evaluation: Evaluation,
    texts: Mapping[str, Sequence[str]],
    shards: Sequence[str],
    open_actors: Callable[..., Actors],
    n: int,
) -> Evaluation:
    """Look for the items of an evaluation in shards, now, and return it with `contamination` among its figures.

    It has, by task, how many items were `checked`, how many were `hits`, their `share` of the checked, and
    `clean_accuracy`: the mean outcome of those that were checked and not hit, with its `interval`. None stands for a
    mean of no items.

    Args:
        evaluation: has the figure `outcomes`, of the same tasks and items as the texts.
        open_actors: (num_calls, name=) -> actors that need not hold anything.
        n: as in `find`.
    """
    blocks = reading.blocks(shards)
    with closing(open_actors(len(blocks), name="contamination")) as actors:
        hits = find(texts, blocks, actors, n)

    def finish(results: list[Any]) -> dict[str, Any]:
        found = evaluation.finish(results)
        by_task = {name: _clean(found["outcomes"][name], of_task) for name, of_task in hits.items()}
        return {**found, "contamination": by_task}

    return evaluation._replace(finish=finish)


def _clean(outcomes: Sequence[float], hits: Sequence[bool | None]) -> dict[str, Any]:
    checked = [(outcome, hit) for outcome, hit in zip(outcomes, hits, strict=True) if hit is not None]
    clean, num_hits = [outcome for outcome, hit in checked if not hit], sum(bool(hit) for _, hit in checked)
    return {
        "checked": len(checked),
        "hits": num_hits,
        "share": num_hits / len(checked) if checked else None,
        "clean_accuracy": mean(clean) if clean else None,
        "interval": {"clean_accuracy": list(interval(draws_of_mean(clean)))} if clean else {},
    }


class Ngrams(NamedTuple):
    """The n-grams to look for."""

    numbers: dict[str, int]  # of the words that they are made of, from 1
    hashes: dict[int, Hashes]  # by length in words, sorted


def words_of(text: str) -> list[str]:
    """Return a text's words without case and punctuation.

    >>> words_of("The cat, it's 3 o'clock!")
    ['the', 'cat', 'it', 's', '3', 'o', 'clock']
    """
    return WORD.findall(text.lower())


def find(texts: Mapping[str, Sequence[str]], blocks: Sequence[reading.DocumentBlock], actors: Actors, n: int) -> Hits:
    """Look for the n-grams of each task's items in the documents of the blocks.

    Memory holds the items' n-grams as hashes of 64 bits, and one block per actor.

    Args:
        texts: of the items of each task.
        actors: what they hold is not used.
        n: words of an n-gram, at least `MIN_WORDS`.
    """
    if n < MIN_WORDS:
        raise ValueError(f"an n-gram has {n} words; expected {MIN_WORDS} or more, common phrases would hit otherwise")
    numbers: dict[str, int] = {}
    of_items: dict[str, list[tuple[int, Hashes]]] = {name: [] for name in texts}
    for name, of_task in texts.items():
        for text in of_task:
            ids = np.array([numbers.setdefault(word, len(numbers) + 1) for word in words_of(text)], dtype=np.uint64)
            length = min(n, len(ids))
            of_items[name].append((length, _hashes(ids, length)))
    checked = [item for of_task in of_items.values() for item in of_task if item[0] >= MIN_WORDS]
    lengths = {length for length, _ in checked}
    ngrams = Ngrams(numbers, {m: np.unique(np.concatenate([h for k, h in checked if k == m])) for m in lengths})
    found = _scan_all(ngrams, blocks, actors)
    return {
        name: [bool(np.isin(h, found[m]).any()) if m >= MIN_WORDS else None for m, h in of_task]
        for name, of_task in of_items.items()
    }


def _scan_all(ngrams: Ngrams, blocks: Sequence[reading.DocumentBlock], actors: Actors) -> dict[int, Hashes]:
    """Return those of the hashes that occur in any block."""
    found = {length: np.zeros(0, np.uint64) for length in ngrams.hashes}
    with Progress("contamination", len(blocks), unit="block") as progress:
        scanned = actors.map(partial(_scan, ngrams=ngrams), blocks)
        for in_block in progress.track(scanned):
            found = {length: np.union1d(hashes, in_block[length]) for length, hashes in found.items()}
    return found


def _scan(_: object, block: reading.DocumentBlock, ngrams: Ngrams) -> dict[int, Hashes]:
    """Return those of the hashes that occur in a block."""
    ids = np.fromiter(_numbered(block, ngrams.numbers), dtype=np.uint64)
    return {length: np.intersect1d(_hashes(ids, length), wanted) for length, wanted in ngrams.hashes.items()}


def _numbered(block: reading.DocumentBlock, numbers: Mapping[str, int]) -> Iterator[int]:
    """Yield the numbers of a block's words, with a break after each document."""
    documents = (text.as_py() for chunk in reading.texts(block).chunks for text in chunk)
    return chain.from_iterable(
        chain((numbers.get(word, _BREAK) for word in words_of(document)), (_BREAK,)) for document in documents
    )


def _hashes(ids: NDArray[np.uint64], length: int) -> Hashes:
    """Return a hash of every `length` consecutive numbers: a polynomial modulo 2^64 of the mixed numbers."""
    mixed = (ids + np.uint64(1)) * _BASE
    mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIX
    count = max(0, len(ids) - length + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(length):
        hashes = hashes * _BASE + mixed[i : i + count]
    return hashes ^ (hashes >> np.uint64(29))

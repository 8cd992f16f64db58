"""Count the words of a corpus over the cluster: a task counts a block, and tasks add the counts up in a tree."""

import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import raychat_bpe

from raychat.cluster import Cluster
from raychat.data import reading
from raychat.log import Progress
from raychat.tokenizer import default_threads

SHOW_EVERY_S = 5.0
IN_FLIGHT = 64  # blocks that are being counted, or counted and not yet added up
FAN_IN = 16  # counts that one task adds up
BLOCKS_PER_PART = 256  # words are spread over so many parts that a task holds little of a large corpus's


class Counted(NamedTuple):
    """Words of some documents and how much text they come from."""

    counts: raychat_bpe.Counts
    chars: int  # characters counted, after cropping
    documents: int
    cut_words: int  # different words that occur less than min_count times, and are not in `counts`
    cut_occurrences: int  # how often they occur, all together


class Size(NamedTuple):
    """How much of a block was counted."""

    chars: int
    documents: int


# Call a function with arguments that may be earlier results; return its so many results, or references to them.
Submit = Callable[..., Any]


def count_words(
    blocks: Sequence[reading.Block],
    cluster: Cluster,
    *,
    pattern: str,
    max_chars: int,
    doc_cap: int,
    min_count: int = 1,
) -> Counted:
    """Count the words of the first documents of the blocks.

    blocks: in the corpus's order. pattern: how to split text into words. doc_cap: characters of a document that count,
    the rest is cropped. max_chars: characters to count in all, after cropping. min_count: words that occur less often
    in all blocks together are left out.
    The result depends on the documents and their order only, not on workers nor on how they are cut into blocks.
    """
    num_parts = 1 + len(blocks) // BLOCKS_PER_PART
    submit, get = (_call, lambda result: result) if cluster.workers == 0 else _ray_calls(cluster)
    trees = [_Tree(lambda forms: submit(_add, 1, 1, *forms)) for _ in range(num_parts)]
    settings = (pattern, doc_cap, num_parts)
    window = IN_FLIGHT if cluster.workers else 1
    chars = documents = 0
    started = shown = time.monotonic()
    counted = _counted(blocks, submit, window, max_chars, *settings)
    with Progress("count words", len(blocks)) as progress, closing(counted):
        for step, (block, result) in enumerate(counted, start=1):
            size, *parts = result
            if chars + get(size).chars > max_chars:  # the last block: only its first documents
                size, *parts = submit(_count, 1 + num_parts, block, max_chars - chars, *settings)
            for tree, part in zip(trees, parts, strict=True):
                tree.add(part)
            chars, documents = chars + get(size).chars, documents + get(size).documents
            now = time.monotonic()
            if now - shown >= SHOW_EVERY_S or chars >= max_chars or step == len(blocks):
                shown = now
                progress.show({"step": step, "characters": chars, "per_s": round(chars / (now - started))})
            if chars >= max_chars:
                break
    sums = [get(submit(_add_and_cut, 1, min_count, *tree.rest())) for tree in trees]
    counts = raychat_bpe.Counts.from_sorted([form for form, _, _ in sums])
    return Counted(counts, chars, documents, sum(words for _, words, _ in sums), sum(n for _, _, n in sums))


def crop(texts: pa.ChunkedArray, max_chars: int, doc_cap: int) -> tuple[pa.ChunkedArray, Size]:
    """Take the first documents, each cropped to `doc_cap` characters, until they have `max_chars`; say how much it is.

    >>> crop(pa.chunked_array([["abcd", "éfgh"], ["i"]]), 5, 3)[0].to_pylist()
    ['abc', 'éf']
    """
    if not len(texts):
        return texts, Size(0, 0)
    lengths = np.minimum(pc.utf8_length(texts).to_numpy(), doc_cap)
    ends = np.cumsum(lengths, dtype=np.int64)
    num = int(np.searchsorted(ends, max_chars)) + 1  # documents, the last of which may be too long
    taken = texts.slice(0, num)
    if pc.max(pc.binary_length(taken)).as_py() > doc_cap:
        taken = pc.utf8_slice_codeunits(taken, 0, doc_cap)
    if num <= len(texts) and ends[num - 1] > max_chars:
        last = pc.utf8_slice_codeunits(taken.slice(num - 1), 0, int(lengths[num - 1] - ends[num - 1] + max_chars))
        taken = pa.chunked_array([*taken.slice(0, num - 1).chunks, *last.chunks])
    return taken, Size(min(max_chars, int(ends[-1])), len(taken))


# ---------------------------------------------------------------------------------------------- tasks


def _count(block: reading.Block, max_chars: int, pattern: str, doc_cap: int, num_parts: int) -> tuple[Any, ...]:
    """Return the size of a block and its counts in parts."""
    texts, size = crop(reading.texts(block), max_chars, doc_cap)
    return size, *raychat_bpe.Counts(texts, pattern, default_threads()).to_sorted(num_parts)


def _add(min_count: int, *forms: bytes) -> bytes:
    return raychat_bpe.merge(forms, min_count)[0]


def _add_and_cut(min_count: int, *forms: bytes) -> tuple[bytes, int, int]:
    return raychat_bpe.merge(forms, min_count)


def _counted(
    blocks: Sequence[reading.Block], submit: Submit, window: int, max_chars: int, *settings: Any
) -> Generator[tuple[reading.Block, Any]]:
    """Submit the blocks, some of them ahead, and yield each with its results in order."""
    num_results = 1 + settings[-1]
    ahead: deque[tuple[reading.Block, Any]] = deque()
    try:
        for block in blocks:
            ahead.append((block, submit(_count, num_results, block, max_chars, *settings)))
            if len(ahead) >= window:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:  # enough has been counted: what is left would still download and count
        for _, (size, *_) in ahead:
            if isinstance(size, ray.ObjectRef):
                ray.cancel(size)


def _call(fn: Callable[..., Any], num_results: int, *args: Any) -> Any:
    return fn(*args)


def _ray_calls(cluster: Cluster) -> tuple[Submit, Callable[[Any], Any]]:
    """Return what calls functions as Ray tasks and what waits for a result. Ray runs a lost task again."""
    from raychat.cluster.launch import connect  # imports torch, which the tasks can do without

    connect(cluster)
    task = functools.cache(lambda fn, num_results: ray.remote(num_cpus=1, num_returns=num_results)(fn))
    return lambda fn, num_results, *args: task(fn, num_results).remote(*args), ray.get


class _Tree:
    """Counts that are added up, `FAN_IN` at a time, as they come."""

    def __init__(self, add_up: Callable[[list[Any]], Any]) -> None:
        self._add_up = add_up
        self._levels: list[list[Any]] = []

    def add(self, form: Any, level: int = 0) -> None:
        """Add one form of counts; level: how many times it has been added up."""
        if level == len(self._levels):
            self._levels.append([])
        forms = self._levels[level]
        forms.append(form)
        if len(forms) == FAN_IN:
            self._levels[level] = []
            self.add(self._add_up(forms), level + 1)

    def rest(self) -> list[Any]:
        """Return what has not been added up."""
        return [form for forms in self._levels for form in forms]

"""Count the words of a corpus over the cluster: actors count a block at a time, and their counts are added up here."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import raychat_bpe

from raychat.cluster import Cluster
from raychat.cluster.map import FanOut, num_cores
from raychat.data import reading
from raychat.log import Progress
from raychat.tokenizer import default_threads

FAN_IN = 16  # sorted counts that are added up at a time
_MAX_ACTORS = 64  # they count faster than their counts can be added up in one process


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

    The result depends on the documents and their order only, not on the workers nor on how the blocks are cut.

    Args:
        blocks: in the corpus's order.
        pattern: how to split text into words.
        max_chars: characters to count in all, after cropping.
        doc_cap: characters of a document that count; the rest is cropped.
        min_count: words that occur less often in all blocks together are left out.
    """
    count = partial(_count, pattern=pattern, doc_cap=doc_cap)
    num_actors = min(len(blocks), num_cores(cluster), _MAX_ACTORS)
    actors = FanOut(type(None), num_actors, name="count words", max_failures=cluster.max_failures)
    sums, chars, documents, started = _Tree(), 0, 0, time.monotonic()
    with closing(actors), Progress("count words", len(blocks), unit="block") as progress:
        counted = actors.map(lambda _, block: count(block, max_chars), blocks)
        for step, (block, (size, words)) in enumerate(zip(blocks, counted, strict=False), start=1):
            if chars + size.chars > max_chars:  # the last block: only its first documents
                size, words = count(block, max_chars - chars)
            sums.add(words)
            chars, documents = chars + size.chars, documents + size.documents
            progress.advance(step, characters=chars, per_s=round(chars / (time.monotonic() - started)))
            if chars >= max_chars:
                break
    merged, cut_words, cut_occurrences = raychat_bpe.merge(list(sums), min_count)
    return Counted(raychat_bpe.Counts.from_sorted([merged]), chars, documents, cut_words, cut_occurrences)


def crop(texts: pa.ChunkedArray, max_chars: int, doc_cap: int) -> tuple[pa.ChunkedArray, Size]:
    """Return the first documents, each cropped to `doc_cap` characters, until they have `max_chars`, and their size.

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


def _count(block: reading.Block, max_chars: int, *, pattern: str, doc_cap: int) -> tuple[Size, bytes]:
    """Return the size of a block's first documents and their sorted counts."""
    texts, size = crop(reading.texts(block), max_chars, doc_cap)
    return size, raychat_bpe.Counts(texts, pattern, default_threads()).to_sorted(1)[0]


class _Tree:
    """Sorted counts that are added up as they come, `FAN_IN` of one level at a time, so that none is copied often."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = []

    def add(self, words: bytes, level: int = 0) -> None:
        """Add sorted counts that have been added up `level` times."""
        if level == len(self._levels):
            self._levels.append([])
        same = self._levels[level]
        same.append(words)
        if len(same) == FAN_IN:
            self._levels[level] = []
            self.add(raychat_bpe.merge(same, 1)[0], level + 1)

    def __iter__(self) -> Iterator[bytes]:
        """Yield what has not been added up yet."""
        for level in self._levels:
            yield from level

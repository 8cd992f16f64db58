"""Count the words of a corpus over the cluster, block by block."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import raychat_bpe

from raychat import corpus
from raychat.cluster import Cluster
from raychat.cluster.launch import spread
from raychat.log import Progress

SHOW_EVERY_S = 5.0


class Counted(NamedTuple):
    """Words of some documents and how much text they come from."""

    counts: dict[bytes, int]  # word (UTF-8 bytes) -> occurrences
    chars: int  # characters counted, after cropping
    documents: int


def count_words(
    blocks: Sequence[corpus.Block],
    cluster: Cluster,
    *,
    pattern: str,
    max_chars: int,
    doc_cap: int,
) -> Counted:
    """Count the words of the first documents of the blocks, as Ray tasks, a block each.

    blocks: in the corpus's order. pattern: how to split text into words. doc_cap: characters of a document that count,
    the rest is cropped. max_chars: characters to count in all, after cropping.
    The result depends on the documents and their order only, not on workers nor on how they are cut into blocks.
    """
    total: dict[bytes, int] = {}
    chars = documents = 0
    started = shown = time.monotonic()

    def count(block: corpus.Block) -> Counted:
        return count_texts(corpus.texts(block), pattern=pattern, max_chars=max_chars, doc_cap=doc_cap)

    with Progress("count words", len(blocks)) as progress:
        for step, (block, part) in enumerate(zip(blocks, spread(count, blocks, cluster), strict=True), start=1):
            if chars + part.chars > max_chars:  # the last block: only its first documents
                part = count_texts(corpus.texts(block), pattern=pattern, max_chars=max_chars - chars, doc_cap=doc_cap)
            for word, n in part.counts.items():
                total[word] = total.get(word, 0) + n
            chars, documents = chars + part.chars, documents + part.documents
            now = time.monotonic()
            if now - shown >= SHOW_EVERY_S or chars >= max_chars or step == len(blocks):
                shown = now
                progress.show({"step": step, "characters": chars, "per_s": round(chars / (now - started))})
            if chars >= max_chars:
                break
    return Counted(total, chars, documents)


def count_texts(texts: Sequence[str], *, pattern: str, max_chars: int, doc_cap: int) -> Counted:
    """Count the words of documents, each cropped to `doc_cap` characters, until `max_chars` are reached."""
    taken = list(_crop(texts, max_chars, doc_cap))
    return Counted(raychat_bpe.count(taken, pattern), sum(map(len, taken)), len(taken))


def _crop(texts: Sequence[str], max_chars: int, doc_cap: int) -> Iterator[str]:
    for text in texts:
        if max_chars <= 0:
            return
        text = text[: min(doc_cap, max_chars)]
        max_chars -= len(text)
        yield text

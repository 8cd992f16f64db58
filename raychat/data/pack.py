"""What a folder of token shards is made from, block by block. Knows nothing of Ray, so that tasks start quickly."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raychat import paths
from raychat.chat import template
from raychat.data import corpus, shards
from raychat.data.shards import Plan
from raychat.tokenizer import Tokenizer

if TYPE_CHECKING:
    from raychat.tasks import Problem

_VERSION = 2  # part of every fingerprint: raise it when the same inputs give other rows


class Packing(NamedTuple):
    """A folder of token shards and how to make it."""

    folder: str
    plan: Plan
    blocks: Sequence[Any]  # picklable
    pack: Callable[[Any], np.ndarray]  # picklable; from what `read` returns to the block's rows
    read: Callable[[Any], Any] = lambda block: block  # picklable; from a block to its documents


def documents(shards: Sequence[str], tokenizer: Tokenizer, sequence_len: int, storage: str) -> Packing:
    """Return the work of packing documents of shards (`corpus.shards`) into full rows of `sequence_len` + 1 tokens."""
    blocks = corpus.blocks(shards, min_bytes=_least(sequence_len))
    versions = [corpus.version(shard) for shard in shards]
    inputs = _fingerprint("documents", tokenizer.fingerprint, sequence_len, blocks, versions)
    plan = Plan(len(blocks), sequence_len, tokenizer.vocab_size, masked=False, inputs=inputs)
    pack = partial(_pack_texts, tokenizer=tokenizer, sequence_len=sequence_len)
    return Packing(paths.join(storage, "tokens", f"documents-{inputs}"), plan, blocks, pack, corpus.texts)


def conversations(
    problems: Sequence["Problem"], tokenizer: Tokenizer, sequence_len: int, storage: str, *, masked: bool
) -> Packing:
    """Return the work of packing the conversations of problems, in their order, into rows of `sequence_len` + 1 tokens.

    masked=True: rows are padded, only the assistant's tokens carry loss, and a conversation is cropped only where it
    alone is longer than a row (SFT).
    masked=False: rows are full and every token carries loss, as in pretraining (mid).

    Raises ValueError when there are no problems.
    """
    if not problems:
        raise ValueError("no conversations to pack; expected at least one problem")
    messages = [problem.messages for problem in problems]
    blocks = _sliced(messages, min_chars=_least(sequence_len))
    inputs = _fingerprint("conversations", tokenizer.fingerprint, sequence_len, masked, messages)
    plan = Plan(len(blocks), sequence_len, tokenizer.vocab_size, masked, inputs)
    pack = partial(_pack_messages, tokenizer=tokenizer, sequence_len=sequence_len, masked=masked)
    return Packing(paths.join(storage, "tokens", f"conversations-{inputs}"), plan, blocks, pack)


def make_block(folder: str, block: int, pack: Callable[[Any], np.ndarray], documents: Any) -> int:
    """Pack one block and write it; return the number of its rows."""
    rows = pack(documents)
    shards.write_block(folder, block, rows)
    return len(rows)


def _pack_texts(texts: pa.ChunkedArray, *, tokenizer: Tokenizer, sequence_len: int) -> np.ndarray:
    return shards.pack_documents(*tokenizer.encode_batch(texts, bos=True), sequence_len)


def _pack_messages(block: Sequence[Any], *, tokenizer: Tokenizer, sequence_len: int, masked: bool) -> np.ndarray:
    rendered = [template.render(tokenizer, messages) for messages in block]
    if masked:
        return shards.pack_conversations(rendered, sequence_len, pad=tokenizer.bos, vocab_size=tokenizer.vocab_size)
    ids = np.array([token for conversation in rendered for token in conversation.ids], dtype=tokenizer.dtype)
    offsets = np.cumsum([0, *(len(conversation.ids) for conversation in rendered)])
    return shards.pack_documents(ids, offsets, sequence_len, shards.CONVERSATION_BUFFER)


def _sliced(messages: Sequence[Any], min_chars: int) -> list[Sequence[Any]]:
    """Cut conversations, in order, into about equal slices of at least `min_chars` characters each."""
    ends = np.cumsum([sum(len(str(message["content"])) for message in conversation) for conversation in messages])
    target = corpus.block_bytes(int(ends[-1]), min_chars)
    count = max(1, int(ends[-1]) // target)
    cuts = [0, *np.searchsorted(ends, [ends[-1] * i // count for i in range(1, count)]).tolist(), len(messages)]
    return [messages[a:b] for a, b in pairwise(cuts) if a < b]


def _least(sequence_len: int) -> int:
    """Return the least text in a block, in bytes: enough for about 100 rows, as the last one, unfilled, is dropped."""
    return max(1 << 18, 400 * sequence_len)


def _fingerprint(*values: Any) -> str:
    """Return 16 hex digits that change when any of the values does."""
    return hashlib.sha256(json.dumps([_VERSION, *values], sort_keys=True).encode()).hexdigest()[:16]

"""What a folder of token shards is made from, block by block. Knows nothing of Ray, so that tasks start quickly."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raychat import paths
from raychat.chat import template
from raychat.data import corpus, packing, reading, shards
from raychat.data.packing import Packed
from raychat.data.shards import BlockCounts, Plan
from raychat.recipe import BY_CONTENT
from raychat.tokenizer import Tokenizer

if TYPE_CHECKING:
    from raychat.tasks import Problem

_VERSION = 3  # part of every fingerprint: raise it when the same inputs give other rows
TRAIN_FRAC = 0.9  # of the characters of a single text
_NUM_NAMED = 5  # conversations named in a message


class Packing(NamedTuple):
    """A folder of token shards and how to make it."""

    folder: str
    plan: Plan
    blocks: Sequence[Any]  # picklable
    pack: Callable[[Any], Packed]  # picklable; from what `read` returns to the block's rows
    read: Callable[[Any], Any] = lambda block: block  # picklable; from a block to its documents
    sources: Mapping[str, Any] | None = None  # for people: the version of every shard, or conversations by file


def documents(shards: Sequence[str], tokenizer: Tokenizer, sequence_len: int, storage: str) -> Packing:
    """Describe how the documents of shards (`corpus.shards`) become full rows of `sequence_len` + 1 tokens.

    The folder is named by what the shards hold (`corpus.version`), so that moved or copied shards share it, and one
    that is rewritten gets new tokens.
    """
    with ThreadPoolExecutor(16) as pool:
        versions = dict(zip(shards, pool.map(corpus.version, shards), strict=True))
    blocks = reading.blocks(shards, min_bytes=_min_bytes(sequence_len))
    number = {shard: i for i, shard in enumerate(shards)}
    cuts = [[(number[part.path], part.start, part.stop) for part in block.parts] for block in blocks]
    fingerprint = _fingerprint("documents", tokenizer.fingerprint, sequence_len, cuts, list(versions.values()))
    inputs = f"{BY_CONTENT}{fingerprint}"
    plan = Plan(len(blocks), sequence_len, tokenizer.vocab_size, masked=False, inputs=inputs)
    pack = partial(_pack_texts, tokenizer=tokenizer, sequence_len=sequence_len)
    return Packing(paths.join(storage, "tokens", inputs), plan, blocks, pack, reading.texts, versions)


def pretraining(
    data: Sequence[str], tokenizer: Tokenizer, sequence_len: int, storage: str, num_shards: int | None = None
) -> tuple[Packing, Packing]:
    """Describe how a corpus (`corpus.shards`) becomes rows to train on, and to validate on.

    The last shard is for validation; of a single text file the last tenth of its characters.
    """
    shards = corpus.shards(data, storage, num_shards)
    if corpus.one_text(shards):
        ranges = ((0.0, TRAIN_FRAC), (TRAIN_FRAC, 1.0))
        train, val = (text(shards[0], tokenizer, sequence_len, storage, *range_) for range_ in ranges)
    else:
        train, val = (documents(part, tokenizer, sequence_len, storage) for part in corpus.split(shards))
    return train, val


def text(
    path: str, tokenizer: Tokenizer, sequence_len: int, storage: str, start: float = 0.0, stop: float = 1.0
) -> Packing:
    """Describe how a part of one text file becomes consecutive rows: BOS and `sequence_len` tokens each.

    start, stop: of the part, as shares of the text's characters.
    """
    version = corpus.version(path)
    inputs = f"{BY_CONTENT}{_fingerprint('text', tokenizer.fingerprint, sequence_len, start, stop, version)}"
    plan = Plan(1, sequence_len, tokenizer.vocab_size, masked=False, inputs=inputs, one_text=True)
    pack = partial(_pack_one_text, tokenizer=tokenizer, sequence_len=sequence_len)
    read = partial(reading.part_of_text, start=start, stop=stop)
    return Packing(paths.join(storage, "tokens", inputs), plan, [path], pack, read, {path: version})


def conversations(
    problems: Sequence["Problem"],
    tokenizer: Tokenizer,
    sequence_len: int,
    storage: str,
    *,
    masked: bool,
    log: Callable[[str], None] = print,
) -> Packing:
    """Describe how the conversations of problems, in their order, become rows of `sequence_len` + 1 tokens.

    A conversation that ends with the user is used up to its last answer. One that has no answer, an empty message or
    another layout is left out. One line logged names the first of both kinds.

    Args:
        storage: the folder or URL that `tokens/` is in.
        masked: True: rows are padded, only the assistant's tokens carry loss, and a conversation is truncated only when
            it alone is longer than a row (SFT). False: rows are full and every token carries loss, as in pretraining
            (mid).

    Raises:
        ValueError: there are no problems, or no conversation is left.
    """
    if not problems:
        raise ValueError("no conversations to pack; expected at least one problem")
    messages, sources = _trainable(problems, log)
    blocks = _sliced(messages, min_chars=_min_bytes(sequence_len))
    inputs = _fingerprint("conversations", tokenizer.fingerprint, sequence_len, masked, messages)
    plan = Plan(len(blocks), sequence_len, tokenizer.vocab_size, masked, inputs)
    pack = partial(_pack_messages, tokenizer=tokenizer, sequence_len=sequence_len, masked=masked)
    return Packing(paths.join(storage, "tokens", f"conversations-{inputs}"), plan, blocks, pack, sources=sources)


def make_block(folder: str, block: int, pack: Callable[[Any], Packed], documents: Any) -> BlockCounts:
    """Pack one block, write its rows, and return what it holds."""
    packed = pack(documents)
    counts = BlockCounts(len(packed.rows), packed.documents, packed.used, packed.lost)
    shards.write_block(folder, block, packed.rows, counts)
    return counts


def _pack_texts(texts: pa.ChunkedArray, *, tokenizer: Tokenizer, sequence_len: int) -> Packed:
    return packing.pack_documents(*tokenizer.encode_batch(texts, bos=True), sequence_len)


def _pack_one_text(texts: Sequence[str], *, tokenizer: Tokenizer, sequence_len: int) -> Packed:
    ids, _ = tokenizer.encode_batch(texts)
    used = len(ids) // sequence_len * sequence_len
    rows = np.full((used // sequence_len, sequence_len + 1), tokenizer.bos, dtype=ids.dtype)
    rows[:, 1:] = ids[:used].reshape(-1, sequence_len)
    return Packed(rows, len(texts), used, len(ids) - used)


def _pack_messages(block: Sequence[Any], *, tokenizer: Tokenizer, sequence_len: int, masked: bool) -> Packed:
    rendered = [template.render(tokenizer, messages) for messages in block]
    if masked:
        return packing.pack_conversations(rendered, sequence_len, pad=tokenizer.bos, dtype=tokenizer.dtype)
    ids = np.array([token for conversation in rendered for token in conversation.ids], dtype=tokenizer.dtype)
    offsets = np.cumsum([0, *(len(conversation.ids) for conversation in rendered)])
    return packing.pack_documents(ids, offsets, sequence_len, packing.CONVERSATION_WINDOW)


def _trainable(
    problems: Sequence["Problem"], log: Callable[[str], None]
) -> tuple[list[list[template.Message]], Counter[str]]:
    """Return the messages to train on, each conversation up to its last answer, and how many are of which file.

    Logs what is left out or shortened, where a problem that occurs several times, as in a mixture, is counted once.
    """
    found, files = [], Counter[str]()
    left_out: dict[str, str] = {}  # source: why
    shortened: dict[str, str] = {}
    for number, problem in enumerate(problems):
        source = problem.source or f"conversation {number}"
        try:
            roles = [message["role"] for message in template.normalise(problem.messages)]
            if "assistant" not in roles:
                raise ValueError("no message of the assistant")
        except ValueError as error:
            left_out[source] = str(error)
            continue
        if roles[-1] == "user":
            shortened[source] = "ends with the user"
        found.append(problem.messages[:-1] if roles[-1] == "user" else problem.messages)
        files[problem.source.rpartition(", ")[0] or "generated"] += 1
    if left_out or shortened:
        named = [f"{source} ({why})" for source, why in (left_out | shortened).items()]
        rest = f"; and {len(named) - _NUM_NAMED:,} more" if len(named) > _NUM_NAMED else ""
        log(
            f"conversations: {len(left_out):,} left out, {len(shortened):,} shortened to their last answer: "
            f"{'; '.join(named[:_NUM_NAMED])}{rest}"
        )
    if not found:
        raise ValueError(f"all {len(left_out):,} conversations were left out, such as {named[0]}; nothing to train on")
    return found, files


def _sliced(messages: Sequence[Any], min_chars: int) -> list[Sequence[Any]]:
    """Cut conversations, in order, into about equal slices of at least `min_chars` characters each."""
    ends = np.cumsum([sum(len(str(message["content"])) for message in conversation) for conversation in messages])
    target = reading.block_bytes(int(ends[-1]), min_chars)
    count = max(1, int(ends[-1]) // target)
    cuts = [0, *np.searchsorted(ends, [ends[-1] * i // count for i in range(1, count)]).tolist(), len(messages)]
    return [messages[a:b] for a, b in pairwise(cuts) if a < b]


def _min_bytes(sequence_len: int) -> int:
    """Return the least text in a block, in bytes: about 150 rows, because the last unfilled row is dropped."""
    return max(1 << 18, 800 * sequence_len)


def _fingerprint(*values: Any) -> str:
    """Return 16 hex digits that change when any of the values does."""
    return hashlib.sha256(json.dumps([_VERSION, *values], sort_keys=True).encode()).hexdigest()[:16]

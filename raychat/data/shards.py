"""Packed token shards: a folder of rows of T + 1 tokens in a fixed order, written block by block, read by row number.

    plan.json                  what the folder will hold when it is complete; written first
    000007-00000123.npy        block 7, which has 123 rows; the blocks in order are the rows in order
    failed.txt                 why the making of it stopped, if it did

A block is an array (rows, T + 1) of uint16, or uint32 for a large vocabulary; when the plan says `masked`,
(rows, 2, T + 1) whose second plane is 1 where a token carries loss when it is a target. The row counts are in the
names, so one listing says how many rows there are.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from raychat import paths
from raychat.data.packing import Span, best_fit

PLAN_FILE = "plan.json"
FAILED_FILE = "failed.txt"
DOCUMENT_BUFFER = 1000  # documents that best fit chooses from
CONVERSATION_BUFFER = 50  # a few: questions of one kind have one length, and a row should not hold that kind alone


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder of token shards holds when it is complete."""

    num_blocks: int
    sequence_len: int  # T: rows have T + 1 tokens
    vocab_size: int
    masked: bool  # whether every row comes with a plane that says which targets carry loss
    inputs: str  # fingerprint of what the tokens are made from


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest dtype that shards are written in: uint16 while every id fits."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


# ---------------------------------------------------------------------------------------------- packing


def pack_documents(
    ids: np.ndarray, offsets: np.ndarray, sequence_len: int, buffer_size: int = DOCUMENT_BUFFER
) -> np.ndarray:
    """Pack documents into full rows, cropping where nothing fits (`packing.best_fit`), in a mixed order.

    ids: (N,) uint16 or uint32, the documents one after the other, each beginning with BOS, so that every row does.
    offsets: (documents + 1,), document i being ids[offsets[i] : offsets[i + 1]].
    Returns (rows, T + 1) of the same dtype; no rows when there are fewer than T + 1 tokens.
    """
    capacity = sequence_len + 1
    packed = _mixed(best_fit(np.diff(offsets).tolist(), capacity, crop=True, buffer_size=buffer_size))
    begins = offsets.tolist()
    rows = np.empty((len(packed), capacity), dtype=ids.dtype)
    for row, pieces in zip(rows, packed, strict=True):
        at = 0
        for document, start, stop in pieces:
            row[at : at + stop - start] = ids[begins[document] + start : begins[document] + stop]
            at += stop - start
        assert at == capacity
    return rows


def pack_conversations(
    conversations: Sequence[tuple[Sequence[int], Sequence[int]]], sequence_len: int, pad: int, vocab_size: int
) -> np.ndarray:
    """Pack conversations into rows, mixed, without cropping them; the rest of a row is padding that carries no loss.

    conversations: (ids, mask) each, of equal lengths; mask is 1 where the token carries loss when it is a target. One
    that is longer than T + 1 tokens is truncated.
    Returns (rows, 2, T + 1), tokens and mask, of `token_dtype(vocab_size)`.
    """
    capacity = sequence_len + 1
    lengths = [len(ids) for ids, _ in conversations]
    packed = _mixed(best_fit(lengths, capacity, crop=False, buffer_size=CONVERSATION_BUFFER))
    rows = np.zeros((len(packed), 2, capacity), dtype=token_dtype(vocab_size))
    rows[:, 0] = pad
    for row, pieces in zip(rows, packed, strict=True):
        at = 0
        for conversation, start, stop in pieces:
            ids, mask = conversations[conversation]
            row[0, at : at + stop - start] = ids[start:stop]
            row[1, at : at + stop - start] = mask[start:stop]
            # a conversation's first token is never a target: what precedes it belongs to another one
            row[1, at] = 0
            at += stop - start
    return rows


def _mixed(rows: list[list[Span]]) -> list[list[Span]]:
    """Permute rows, always in the same way: best fit takes by length, and what is equally long is often much alike."""
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


# ---------------------------------------------------------------------------------------------- writing


def write_plan(folder: str, plan: Plan) -> None:
    """Write the plan of a new folder, or check that it is the one the folder was begun with.

    Raises ValueError when the folder was made for another plan.
    """
    path = paths.join(folder, PLAN_FILE)
    if paths.exists(path):
        found = read_plan(folder)
        if found != plan:
            raise ValueError(
                f"{folder} holds tokens of another plan: {found}, expected {plan}; remove it or use another"
            )
        return
    paths.write_json(path, dataclasses.asdict(plan))


def read_plan(folder: str) -> Plan:
    """Read a folder's plan. Raises ValueError when it is not one."""
    fields = paths.read_json(paths.join(folder, PLAN_FILE))
    try:
        return Plan(**fields)
    except TypeError:
        raise ValueError(f"{paths.join(folder, PLAN_FILE)} is not a plan of token shards: {fields!r:.200}") from None


def write_block(folder: str, block: int, rows: np.ndarray) -> None:
    """Write one block's rows atomically, (rows, T + 1) or (rows, 2, T + 1); zero rows are fine."""
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    paths.write_bytes(paths.join(folder, _block_name(block, len(rows))), data.getvalue())


def _block_name(block: int, num_rows: int) -> str:
    return f"{block:06d}-{num_rows:08d}.npy"


def rows_by_block(names: Sequence[str]) -> dict[int, int]:
    """Return the number of rows of every block that is there, from the names in a folder."""
    blocks: dict[int, int] = {}
    for name in names:
        if not name.endswith(".npy"):
            continue
        block, _, num_rows = name.removesuffix(".npy").partition("-")
        if int(block) in blocks:
            raise ValueError(
                f"block {int(block)} is there twice: {name} and {_block_name(int(block), blocks[int(block)])}"
            )
        blocks[int(block)] = int(num_rows)
    return blocks


# ---------------------------------------------------------------------------------------------- reading


class TokenRows:
    """The rows of a folder of token shards by number, also while the folder is still being made.

    Row i is the same row whoever asks and whenever. A row that is not there yet is waited for, saying what for. Rows go
    round: row i beyond the last one is row i modulo the number of rows (which waits for the complete folder), so that a
    loop over many epochs simply counts on.

    folder: local or remote; remote blocks are copied to this machine's cache when first read.
    wait_s: how long to wait without a new block before giving up.

    Raises TimeoutError after `wait_s`, and RuntimeError with the cause when the folder's making has failed.
    """

    def __init__(self, folder: str, *, wait_s: float = 600.0, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._wait_s, self._say = wait_s, say
        self._starts = np.zeros(1, dtype=np.int64)  # first row of every block of the contiguous prefix; last: their sum
        self._names: list[str] = []  # their files
        self._num_blocks: int | None = None
        self._wait(lambda: self._num_blocks is not None, "its plan")
        self.plan = read_plan(folder)
        self._open = lru_cache(maxsize=64)(self._load)

    def available(self) -> int:
        """Return how many rows are there now: those of the blocks up to the first missing one. Does not wait."""
        self._look()
        return int(self._starts[-1])

    def complete(self) -> bool:
        """Tell whether every block is there. Does not wait."""
        if not self._complete:
            self._look()
        return self._complete

    def num_rows(self) -> int:
        """Return the number of rows of the complete folder, waiting for it."""
        self._wait(lambda: self._complete, "all of its blocks")
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return rows by number, waiting for them: tokens (n, T + 1) int64 and mask (n, T + 1) bool, copies both.

        The mask is True where the token carries loss when it is a target; all True when the folder is not masked.
        """
        capacity = self.plan.sequence_len + 1
        blocks, within = self._locate(indices)
        tokens = np.empty((len(blocks), capacity), dtype=np.int64)
        mask = np.ones((len(blocks), capacity), dtype=bool)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            rows = self._open(block)[within[here]]
            tokens[here] = rows[:, 0] if self.plan.masked else rows
            if self.plan.masked:
                mask[here] = rows[:, 1] != 0
        return tokens, mask

    def num_valid(self, indices: np.ndarray | Sequence[int]) -> int:
        """Return how many targets carry loss in these rows, waiting for them; the first token of a row is no target."""
        if not self.plan.masked:
            return len(indices) * self.plan.sequence_len
        blocks, within = self._locate(indices)
        return sum(
            int(np.count_nonzero(self._open(block)[within[blocks == block], 1, 1:]))
            for block in np.unique(blocks).tolist()
        )

    @property
    def _complete(self) -> bool:
        return len(self._names) == self._num_blocks

    def _locate(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return block and row within the block for every row number, once they are all there."""
        index = np.asarray(indices, dtype=np.int64)
        if index.ndim != 1 or (index < 0).any():
            raise ValueError(f"row numbers should be one-dimensional and not negative, got {index}")
        last = int(index.max(initial=-1))
        self._wait(lambda: last < self._starts[-1] or self._complete, f"row {last:,}")
        if last >= (total := int(self._starts[-1])):
            if not total:
                raise ValueError(
                    f"{self.folder} holds no row: its text is shorter than one row of {self.plan.sequence_len + 1}"
                )
            index = index % total
        block = np.searchsorted(self._starts, index, side="right") - 1
        return block, index - self._starts[block]

    def _load(self, block: int) -> np.ndarray:
        rows = np.load(paths.local(paths.join(self.folder, self._names[block])), mmap_mode="r", allow_pickle=False)
        expected = (
            self._starts[block + 1] - self._starts[block],
            *([2] if self.plan.masked else []),
            self.plan.sequence_len + 1,
        )
        if rows.shape != expected:
            raise ValueError(f"{self._names[block]} in {self.folder} has shape {rows.shape}, expected {expected}")
        return rows

    def _look(self) -> None:
        """Take note of what is there, from one listing."""
        names = paths.names(self.folder)
        if self._num_blocks is None and PLAN_FILE in names:
            self._num_blocks = read_plan(self.folder).num_blocks
        num_rows = rows_by_block(names)
        while (block := len(self._names)) in num_rows:
            self._names.append(_block_name(block, num_rows[block]))
            self._starts = np.append(self._starts, self._starts[-1] + num_rows[block])
        if FAILED_FILE in names and not self._complete:
            cause = paths.read_text(paths.join(self.folder, FAILED_FILE)).strip()
            raise RuntimeError(f"the tokens in {self.folder} could not be made:\n{cause}")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        """Look until `ready()`, saying at most every 10 s what is waited for; give up `wait_s` after the last block."""
        seen, progress_at = len(self._names), time.monotonic()
        said_at = progress_at - 9.0  # the first word after a second
        pause_s = 0.1
        while not ready():
            self._look()
            now = time.monotonic()
            if len(self._names) > seen:
                seen, progress_at = len(self._names), now
            if ready():
                return
            state = f"{seen} of {self._num_blocks or '?'} blocks, {self._starts[-1]:,} rows, are there"
            if now - progress_at > self._wait_s:
                raise TimeoutError(
                    f"waited {self._wait_s:g} s for {what} of {self.folder}: {state}; is anything making it?"
                )
            if now - said_at >= 10.0:
                self._say(f"waiting for {what} of {self.folder}: {state}")
                said_at = now
            time.sleep(pause_s)
            pause_s = min(2.0, 1.5 * pause_s)

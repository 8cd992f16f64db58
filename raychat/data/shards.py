"""Packed token shards: a folder of rows of T + 1 tokens in a fixed order, written block by block, read by row number.

    plan.json                         what the folder will hold when it is complete; written first
    sources.json                      what it is made from: the version of every shard, or conversations by file
    000007-00000123-940-251900-8.npy  block 7: 123 rows; 940 documents, with 251,900 tokens in the rows and 8 lost
    failed.txt                        why its preparation failed, if it did

The blocks in order are the rows in order. A block is an array (rows, T + 1) of uint16, or uint32 for a large
vocabulary. If the plan says `masked`, it is (rows, 2, T + 1), and the second plane is 1 where a token carries loss as a
target. File names contain the counts, so one listing tells how many rows there are. A block that an older raychat wrote
names only its rows.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from raychat import paths
from raychat.log import Throttle

PLAN_FILE = "plan.json"
SOURCES_FILE = "sources.json"
FAILED_FILE = "failed.txt"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder of token shards holds when it is complete."""

    num_blocks: int
    sequence_len: int  # T: rows have T + 1 tokens
    vocab_size: int
    masked: bool  # True: rows have a second plane for the targets that carry loss
    inputs: str  # fingerprint of what the tokens are made from
    one_text: bool = False  # True: row after row, without their BOS, is one text (`text_rows`)


class BlockCounts(NamedTuple):
    """Rows of one or more blocks, their documents, and tokens of these that are in the rows or lost (see `Packed`)."""

    rows: int
    documents: int
    used: int
    lost: int

    @property
    def lost_frac(self) -> float:
        return self.lost / max(1, self.used + self.lost)


def write_plan(folder: str, plan: Plan, sources: Mapping[str, Any] | None = None) -> None:
    """Write the plan of a new folder, or check that the folder was begun with the same plan.

    Args:
        sources: what the tokens are made from, for `manifest`; None = not recorded.

    Raises:
        ValueError: the folder has another plan.
    """
    path = paths.join(folder, PLAN_FILE)
    if sources is not None and not paths.exists(file := paths.join(folder, SOURCES_FILE)):
        paths.write_json(file, sources)
    if not paths.exists(path):
        paths.write_json(path, dataclasses.asdict(plan))
    elif (found := read_plan(folder)) != plan:
        raise ValueError(f"{folder} holds tokens of another plan: {found}, expected {plan}; remove it or use another")


def read_plan(folder: str) -> Plan:
    """Read a folder's plan."""
    return Plan(**paths.read_json(paths.join(folder, PLAN_FILE)))


def write_block(folder: str, block: int, rows: np.ndarray, counts: BlockCounts | None = None) -> None:
    """Write one block's rows atomically: (rows, T + 1) or (rows, 2, T + 1), possibly zero rows.

    counts: of the block, for its name; None = only its rows are known.
    """
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    paths.write_bytes(paths.join(folder, _block_name(block, *(counts or [len(rows)]))), data.getvalue())


def _block_name(block: int, num_rows: int, *counts: int) -> str:
    return "-".join([f"{block:06d}", f"{num_rows:08d}", *map(str, counts)]) + ".npy"


def _numbers(name: str) -> list[int]:
    """Return what a block's name says: its number, its rows, and the other counts."""
    return [int(number) for number in name.removesuffix(".npy").split("-")]


def rows_by_block(names: Sequence[str]) -> dict[int, int]:
    """Return the number of rows of every finished block, from the file names in a folder."""
    return {block: _numbers(name)[1] for block, name in _name_by_block(names).items()}


def _name_by_block(names: Sequence[str]) -> dict[int, str]:
    """Return the file of every finished block."""
    blocks: dict[int, str] = {}
    for name in names:
        if name.endswith(".npy"):
            block = _numbers(name)[0]
            if block in blocks:
                raise ValueError(f"block {block} exists twice: {name} and {blocks[block]}; remove one of them")
            blocks[block] = name
    return blocks


def counts(names: Sequence[str]) -> BlockCounts | None:
    """Add up what the names of finished blocks count; None if an older raychat wrote one of them."""
    found = [_numbers(name)[1:] for name in _name_by_block(names).values()]
    if any(len(numbers) != len(BlockCounts._fields) for numbers in found):
        return None
    return BlockCounts(*np.array([[0] * len(BlockCounts._fields), *found]).sum(axis=0).tolist())


def manifest(folder: str) -> dict[str, Any]:
    """Return what the finished blocks of a folder hold and were made from; None for what nobody recorded."""
    names, plan = paths.names(folder), read_plan(folder)
    rows, found = rows_by_block(names), counts(names)
    sources = paths.read_json(paths.join(folder, SOURCES_FILE)) if SOURCES_FILE in names else None
    totals = {"blocks": len(rows), "of_blocks": plan.num_blocks, "rows": sum(rows.values())}
    told = {"documents": found and found.documents, "tokens": found and found.used, "lost": found and found.lost}
    return {"folder": folder, "inputs": plan.inputs, **totals, **told, "sources": sources}


class TokenRows:
    """Read the rows of a folder of token shards by number, also while later blocks are still being made.

    Row i is always the same row. Reading a missing row waits for it and logs the wait. A number beyond the last row is
    taken modulo the number of rows, once the folder is complete, so epochs need no counter of their own.

    Args:
        folder: local or remote; remote blocks are copied to this machine's cache when first read.
        wait_s: how long to wait for the next block before giving up.

    Raises:
        TimeoutError: no new block appeared for `wait_s`.
        RuntimeError: the folder's preparation failed; holds the cause.
    """

    def __init__(self, folder: str, *, wait_s: float = 600.0, log: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._wait_s, self._log = wait_s, log
        self._starts = np.zeros(1, dtype=np.int64)  # first rows of the blocks before the first missing one; their sum
        self._names: list[str] = []  # files of these blocks
        self._num_blocks: int | None = None
        self._wait(lambda: self._num_blocks is not None, "its plan")
        self.plan = read_plan(folder)
        self._open = lru_cache(maxsize=64)(self._load)

    def available(self) -> int:
        """Return the number of rows in the blocks before the first missing one. Does not wait."""
        self._look()
        return int(self._starts[-1])

    def num_rows(self) -> int:
        """Wait until the folder is complete and return its number of rows."""
        self._wait(lambda: self._complete, "all of its blocks")
        return int(self._starts[-1])

    def rows(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Wait for rows by number and return copies: tokens (n, T + 1) int64 and mask (n, T + 1) bool.

        The mask is True where the token carries loss as a target: everywhere, if the folder is not masked.
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
        """Wait for rows and return how many of their targets carry loss. The first token of a row is not a target."""
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
        """Wait for rows and return the block of each, and its number within the block."""
        index = np.asarray(indices, dtype=np.int64)
        if index.ndim != 1 or (index < 0).any():
            raise ValueError(f"row numbers should be one-dimensional and not negative, got {index}")
        last = int(index.max(initial=-1))
        self._wait(lambda: last < self._starts[-1] or self._complete, f"row {last:,}")
        if last >= (total := int(self._starts[-1])):
            if not total:
                raise ValueError(
                    f"{self.folder} holds no row: its text is shorter than a row of {self.plan.sequence_len + 1} tokens"
                )
            index = index % total
        block = np.searchsorted(self._starts, index, side="right") - 1
        return block, index - self._starts[block]

    def _load(self, block: int) -> np.ndarray:
        path = paths.join(self.folder, self._names[block])
        try:
            rows = np.load(paths.local(path), mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged or cut short ({error}); remove it, and the next run makes it again"
            ) from error
        expected = (
            self._starts[block + 1] - self._starts[block],
            *([2] if self.plan.masked else []),
            self.plan.sequence_len + 1,
        )
        if rows.shape != expected:
            raise ValueError(f"{self._names[block]} in {self.folder} has shape {rows.shape}, expected {expected}")
        return rows

    def _look(self) -> None:
        """Update the known blocks from one listing."""
        names = paths.names(self.folder)
        if self._num_blocks is None and PLAN_FILE in names:
            self._num_blocks = read_plan(self.folder).num_blocks
        finished = _name_by_block(names)
        while name := finished.get(len(self._names)):
            self._names.append(name)
            self._starts = np.append(self._starts, self._starts[-1] + _numbers(name)[1])
        if FAILED_FILE in names and not self._complete:
            cause = paths.read_text(paths.join(self.folder, FAILED_FILE)).strip()
            raise RuntimeError(f"the tokens in {self.folder} could not be made:\n{cause}")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        """List the folder until `ready()`; log at most every 10 s; give up `wait_s` after the last new block."""
        lines, seen, seen_at, pause_s = Throttle(10.0, first_s=1.0), len(self._names), time.monotonic(), 0.0
        while not ready():
            state = f"{seen} of {self._num_blocks or '?'} blocks, {self._starts[-1]:,} rows, are ready"
            if time.monotonic() - seen_at > self._wait_s:
                raise TimeoutError(
                    f"waited {self._wait_s:g} s for {what} of {self.folder}: {state}; is it being prepared?"
                )
            if lines.due():
                self._log(f"waiting for {what} of {self.folder}: {state}")
            time.sleep(pause_s)
            pause_s = min(2.0, max(0.1, 1.5 * pause_s))
            self._look()
            if len(self._names) > seen:
                seen, seen_at = len(self._names), time.monotonic()

"""Packed token shards: a folder of rows of T + 1 tokens in a fixed order, written block by block, read by row number.

    plan.json                  what the folder will hold when it is complete; written first
    000007-00000123.npy        block 7, which has 123 rows; the blocks in order are the rows in order
    failed.txt                 why its preparation failed, if it did

A block is an array (rows, T + 1) of uint16, or uint32 for a large vocabulary. If the plan says `masked`, it is
(rows, 2, T + 1), and the second plane is 1 where a token carries loss as a target. File names contain row counts, so
one listing tells how many rows there are.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from raychat import paths

PLAN_FILE = "plan.json"
FAILED_FILE = "failed.txt"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder of token shards holds when it is complete."""

    num_blocks: int
    sequence_len: int  # T: rows have T + 1 tokens
    vocab_size: int
    masked: bool  # True: rows have a second plane for the targets that carry loss
    inputs: str  # fingerprint of what the tokens are made from


def write_plan(folder: str, plan: Plan) -> None:
    """Write the plan of a new folder, or check that the folder was begun with the same plan.

    Raises:
        ValueError: the folder has another plan.
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
    """Read a folder's plan.

    Raises:
        ValueError: the file has other fields.
    """
    fields = paths.read_json(paths.join(folder, PLAN_FILE))
    try:
        return Plan(**fields)
    except TypeError:
        raise ValueError(f"{paths.join(folder, PLAN_FILE)} is not a plan of token shards: {fields!r:.200}") from None


def write_block(folder: str, block: int, rows: np.ndarray) -> None:
    """Write one block's rows atomically: (rows, T + 1) or (rows, 2, T + 1), possibly zero rows."""
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    paths.write_bytes(paths.join(folder, _block_name(block, len(rows))), data.getvalue())


def _block_name(block: int, num_rows: int) -> str:
    return f"{block:06d}-{num_rows:08d}.npy"


def rows_by_block(names: Sequence[str]) -> dict[int, int]:
    """Return the number of rows of every finished block, from the file names in a folder."""
    blocks: dict[int, int] = {}
    for name in names:
        if not name.endswith(".npy"):
            continue
        block, _, num_rows = name.removesuffix(".npy").partition("-")
        if int(block) in blocks:
            raise ValueError(
                f"block {int(block)} exists twice: {name} and {_block_name(int(block), blocks[int(block)])}"
            )
        blocks[int(block)] = int(num_rows)
    return blocks


class TokenRows:
    """Read the rows of a folder of token shards by number, also while later blocks are still being made.

    Row i is always the same row. Reading a missing row waits for it and logs the wait. A number beyond the last row is
    taken modulo the number of rows, once the folder is complete, so epochs need no counter of their own.

    Args:
        folder: local or remote; remote blocks are copied to this machine's cache when first read.
        wait_s: how long to wait for the next block before giving up.
        log: receives lines about waits.

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
        """Update the known blocks from one listing."""
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
        """List the folder until `ready()`; log at most every 10 s; give up `wait_s` after the last new block."""
        seen, progress_at = len(self._names), time.monotonic()
        logged_at = progress_at - 9.0  # the first line after a second
        pause_s = 0.1
        while not ready():
            self._look()
            now = time.monotonic()
            if len(self._names) > seen:
                seen, progress_at = len(self._names), now
            if ready():
                return
            state = f"{seen} of {self._num_blocks or '?'} blocks, {self._starts[-1]:,} rows, are ready"
            if now - progress_at > self._wait_s:
                raise TimeoutError(
                    f"waited {self._wait_s:g} s for {what} of {self.folder}: {state}; is it being prepared?"
                )
            if now - logged_at >= 10.0:
                self._log(f"waiting for {what} of {self.folder}: {state}")
                logged_at = now
            time.sleep(pause_s)
            pause_s = min(2.0, 1.5 * pause_s)

"""Rows of one long text, to train on: every epoch cuts it in other places."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from raychat.data.shards import TokenRows


def training_rows(folder: str, seed: int) -> TokenRows:
    """Open a folder of token shards to train on. seed: of the places where one text is cut; else it does not matter."""
    rows = TokenRows(folder)
    return TextRows(folder, seed) if rows.plan.one_text else rows


class TextRows(TokenRows):
    """Rows of BOS and T consecutive tokens of a text, each token in one row of an epoch, in an order of its own.

    Row i depends on i and the seed alone, so that a stage resumes exactly and any number of workers sees the same data.
    An epoch shifts all cuts by up to a row and shuffles the rows. It leaves out less than two rows at the ends.
    """

    def __init__(self, folder: str, seed: int) -> None:
        super().__init__(folder)
        self._cut = lru_cache(maxsize=2)(self._epoch)
        self._seed = seed

    def rows(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Wait for the whole text and return rows by number: tokens (n, T + 1) int64 and mask (n, T + 1), all True."""
        T, num_rows = self.plan.sequence_len, max(1, self.num_rows() - 1)
        found = [self._place(int(i), num_rows) for i in indices]
        first = np.array([row for row, _ in found], dtype=np.int64)
        left, mask = super().rows(first)
        right, _ = super().rows(first + 1)
        text = np.concatenate((left[:, 1:], right[:, 1:]), axis=1)  # (n, 2 T)
        columns = np.array([shift for _, shift in found], dtype=np.int64)[:, None] + np.arange(T)
        left[:, 1:] = np.take_along_axis(text, columns, axis=1)
        return left, mask

    def _place(self, index: int, num_rows: int) -> tuple[int, int]:
        """Return where row `index` begins: a stored row, and tokens behind its BOS."""
        epoch, place = divmod(index, num_rows)
        shift, order = self._cut(epoch, num_rows)
        return int(order[place]), shift

    def _epoch(self, epoch: int, num_rows: int) -> tuple[int, np.ndarray]:
        """Return how far an epoch shifts the cuts, and the order of its rows."""
        generator = np.random.default_rng((self._seed, epoch))
        shift = int(generator.integers(self.plan.sequence_len)) if num_rows > 1 else 0
        return shift, generator.permutation(num_rows)

"""How tensors are divided among workers: by rows, or dealt out whole; and shards of state, named by their first row."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch.distributed as td
from torch import Tensor

from raychat.dist import World

# torch 2.13 renamed both and warns at the old names, which are the only ones before.
_reduce_scatter = getattr(td, "reduce_scatter_single", None) or td.reduce_scatter_tensor
_all_gather = getattr(td, "all_gather_single", None) or td.all_gather_into_tensor

Wait = Callable[[], Tensor]  # blocks (on CUDA only the stream) until a collective is done, then returns its result


class Split:
    """Rows cut into ranges of equal size, one a worker; the last ranges may be short or empty."""

    def __init__(self, num_rows: int, world: World) -> None:
        self.num_rows, self.world = num_rows, world
        self._chunk = -(-num_rows // world.size)
        self.start = min(world.rank * self._chunk, num_rows)
        self.stop = min(self.start + self._chunk, num_rows)

    def reduce(self, rows: Tensor) -> Wait:
        """Begin to sum all rows (num_rows, ...) over the workers; the result is this worker's range of the sum."""
        if self.world.size == 1:
            return lambda: rows
        own = rows.new_empty((self._chunk, *rows.shape[1:]))
        work = _reduce_scatter(own, self._padded(rows, self._chunk * self.world.size), async_op=True)

        def wait() -> Tensor:
            work.wait()
            return own[: self.stop - self.start]

        return wait

    def gather(self, own: Tensor, rows: Tensor | None = None) -> Wait:
        """Begin to collect every worker's range in `rows` (num_rows, ...), which is the result; None: a new tensor.

        `own` may be this worker's range of `rows` itself.
        """
        if self.world.size == 1:
            return lambda: own
        num_padded = self._chunk * self.world.size
        in_place = rows is not None and len(rows) == num_padded
        gathered = rows if rows is not None and in_place else own.new_empty((num_padded, *own.shape[1:]))
        work = _all_gather(gathered, self._padded(own, self._chunk), async_op=True)

        def wait() -> Tensor:
            work.wait()
            result = gathered[: self.num_rows]
            return result if rows is None or in_place else rows.copy_(result)

        return wait

    @staticmethod
    def _padded(rows: Tensor, num_rows: int) -> Tensor:
        if len(rows) == num_rows:
            return rows.contiguous()
        padded = rows.new_zeros((num_rows, *rows.shape[1:]))
        padded[: len(rows)] = rows
        return padded


def deal(sizes: Sequence[int], num_workers: int) -> list[int]:
    """Return a worker for each size, so that their sums are nearly equal: the largest goes first, to who has least.

    >>> deal([1, 4, 1, 4, 4, 1, 1], 2)
    [1, 0, 1, 1, 0, 1, 1]
    """
    sums, owners = [0] * num_workers, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[i] = sums.index(min(sums))
        sums[owners[i]] += sizes[i]
    return owners


def sum_everywhere(tensor: Tensor, world: World) -> Wait:
    """Begin to sum a tensor over the workers, in place; every worker has the result."""
    if world.size == 1:
        return lambda: tensor
    work = td.all_reduce(tensor, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return tensor

    return wait


class Slot(NamedTuple):
    """This worker's rows of a shard of optimizer state: [first_row, first_row + len(rows)) of `num_rows`."""

    name: str  # <parameter>/<slot>
    rows: Tensor
    first_row: int
    num_rows: int  # of the whole slot, all workers together
    owned: bool = True  # False: kept by every worker, saved by another

    def fill(self, shards: Mapping[str, Tensor], firsts: Sequence[int]) -> None:
        """Copy the rows from the shards `<name>/<first row>`, whose sorted first rows are `firsts`.

        Only shards that hold rows of this range are read. Raises ValueError where they leave a gap or do not fit.
        """
        stop, shape = self.first_row + len(self.rows), tuple(self.rows.shape[1:])
        ends = (*firsts[1:], self.num_rows)
        if firsts[0] != 0:
            raise ValueError(f"optimizer state {self.name}: rows 0 to {firsts[0]} are missing")
        for first, end in zip(firsts, ends, strict=True):
            low, high = max(first, self.first_row), min(end, stop)
            if low >= high:
                continue
            shard = shards[f"{self.name}/{first}"]
            if shard.shape != (end - first, *shape):
                raise ValueError(
                    f"optimizer state {self.name}: expected rows {first} to {end} of shape {shape}, "
                    f"got {tuple(shard.shape)}: rows are missing, or it is another model's"
                )
            self.rows[low - self.first_row : high - self.first_row].copy_(shard[low - first : high - first])

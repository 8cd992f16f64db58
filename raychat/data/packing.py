"""Best-fit packing: which piece of which document goes into which row. One packer for documents and conversations."""

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import islice

Span = tuple[int, int, int]
"""(document, start, stop): tokens [start, stop) of that document."""

# A document is one integer, length << 40 | (2^40 - 1 - its number): when sorted, the longest is last, and of equally
# long ones the earliest.
_BITS = 40
_LATEST = (1 << _BITS) - 1


def best_fit(lengths: Sequence[int], capacity: int, *, crop: bool, buffer_size: int = 1000) -> list[list[Span]]:
    """Pack documents into rows of `capacity` tokens by best fit from a sliding buffer.

    The buffer holds the next `buffer_size` documents that are not placed yet, in the order given. A row takes the
    longest document of the buffer that fits whole into what is left of it (of equally long ones the earliest), again
    and again.

    crop=True: every row is exactly full. When no document fits whole, the shortest of the buffer is cropped to fill
    the row, which loses the fewest tokens. The rest of a cropped document is dropped, and so is the last row when the
    documents run out before it is full: with fewer than `capacity` tokens in all there are no rows.

    crop=False: no document is cropped; a row that nothing fits into is left short, for the caller to pad, and the last
    row is kept. Only a document longer than a whole row is truncated to `capacity`, as it enters.

    Documents of length 0 are placed nowhere. The result depends on nothing but the arguments.

    >>> best_fit([5, 3, 4, 2], capacity=6, crop=True)  # the 5 and one token of the 2; the 4 and two tokens of the 3
    [[(0, 0, 5), (3, 0, 1)], [(2, 0, 4), (1, 0, 2)]]
    >>> best_fit([5, 3, 4, 2], capacity=6, crop=False)
    [[(0, 0, 5)], [(2, 0, 4), (3, 0, 2)], [(1, 0, 3)]]

    Args: lengths in tokens; capacity = T + 1 for rows that hold T inputs and their targets.
    Raises: ValueError if capacity or buffer_size is not positive.
    Source: nanochat's BOS-aligned best-fit loader; Ding et al. 2024, arXiv:2404.10830, section 3 (best-fit packing).
    """
    if capacity < 1 or buffer_size < 1:
        raise ValueError(f"capacity and buffer_size must be at least 1, got {capacity} and {buffer_size}")
    arriving = (
        (int(length if crop else min(length, capacity)) << _BITS) | (_LATEST - document)
        for document, length in enumerate(lengths)
        if length
    )
    buffer = sorted(islice(arriving, buffer_size))
    rows: list[list[Span]] = []
    row: list[Span] = []
    space = capacity

    def place(at: int, longest: int) -> int:
        """Move buffer[at], cut to `longest`, into the row and let the next one enter; return its length."""
        key = buffer.pop(at)
        length = min(key >> _BITS, longest)
        row.append((_LATEST - (key & _LATEST), 0, length))
        if (entering := next(arriving, None)) is not None:
            insort(buffer, entering)
        return length

    while buffer:
        if fits := bisect_right(buffer, (space << _BITS) | _LATEST):
            space -= place(fits - 1, space)
        elif crop:
            space -= place(0, space)
        if not space or not (fits or crop):
            rows.append(row)
            row, space = [], capacity
    if row and not crop:
        rows.append(row)
    return rows

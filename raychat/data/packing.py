"""Best-fit packing: which tokens of which document fill which row. One packer for documents and conversations.

A row takes the longest waiting document that fits into its remaining space, again and again; of equally long ones the
first that came. When no document fits, there are two ways to go on:

cut=True     The shortest document is cut: its beginning fills the row, and its rest waits again, behind an inserted
             BOS. A rest that is still longer than a row first fills whole rows. So every row is full and begins with
             BOS. The last row is dropped unless it is full, which loses fewer tokens than a row has.
cut=False    The row is left short, for the caller to pad. Only a document longer than a row is truncated.

Why cut the shortest: this separates the fewest tokens from their context, and the rest soon fills another gap exactly.
A document longer than a row becomes whole rows, instead of filling the small gaps of many.
"""

from bisect import bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

CONVERSATION_WINDOW = 50  # few: questions of one kind have one length, and a row should hold more than one kind

Span = tuple[int, int, int]
"""(document, start, stop): tokens [start, stop) of that document, behind an inserted BOS where start > 0."""


class Packed(NamedTuple):
    """The rows of one block, its documents, and how many of their tokens are in the rows.

    Inserted BOS and padding do not count. The first token of every document, its own BOS, counts.
    """

    rows: np.ndarray  # (rows, T + 1) uint16 or uint32; (rows, 2, T + 1) with the loss mask
    documents: int
    used: int
    lost: int


def best_fit(lengths: Sequence[int], capacity: int, *, cut: bool, window: int | None = None) -> list[list[Span]]:
    """Pack documents into rows of `capacity` tokens by best fit, as described above. Skip empty documents.

    >>> best_fit([5, 3, 4, 2], capacity=6, cut=True)  # the 5 and one token of the 2; then the 4 and the rest of the 2
    [[(0, 0, 5), (3, 0, 1)], [(2, 0, 4), (3, 1, 2)]]
    >>> best_fit([5, 3, 4, 2], capacity=6, cut=False)
    [[(0, 0, 5)], [(2, 0, 4), (3, 0, 2)], [(1, 0, 3)]]

    Args:
        lengths: in tokens.
        capacity: T + 1 for rows of T inputs and their targets.
        window: how many documents wait at a time; the next one enters when one is placed. None = all of them.

    Raises:
        ValueError: `window` is below 1, or `capacity` is below 1, or below 2 when documents are cut.

    Source: Ding et al. 2024, arXiv:2404.10830, section 3 (best-fit packing).
    """
    if capacity < 1 + cut or (window is not None and window < 1):
        raise ValueError(f"capacity should be at least {1 + cut} and window at least 1, got {capacity} and {window}")
    arriving = ((document, n if cut else min(n, capacity)) for document, n in enumerate(lengths) if n)
    waiting: defaultdict[int, deque[int]] = defaultdict(deque)  # documents by length
    for document, length in islice(arriving, window):
        waiting[length].append(document)
    waiting_lengths = sorted(waiting)
    starts: dict[int, int] = {}  # of the rests
    rows: list[list[Span]] = []
    row: list[Span] = []
    space = capacity
    while waiting_lengths:
        num_fitting = bisect_right(waiting_lengths, space)
        if not num_fitting and not cut:
            rows.append(row)
            row, space = [], capacity
            continue
        at = max(num_fitting - 1, 0)
        length = waiting_lengths[at]
        document = waiting[length].popleft()
        if not waiting[length]:
            del waiting[length], waiting_lengths[at]
        start = starts.get(document, 0)
        if length <= space:
            row.append((document, start, start + length - (start > 0)))
            space -= length
            entering = next(arriving, None)
        else:
            while length > space:
                stop = start + space - (start > 0)
                rows.append([*row, (document, start, stop)])
                row, start, length, space = [], stop, length - space + 1, capacity
            starts[document] = start
            entering = document, length
        if entering:
            document, length = entering
            if length not in waiting:
                insort(waiting_lengths, length)
            waiting[length].append(document)
        if not space:
            rows.append(row)
            row, space = [], capacity
    if row and not cut:
        rows.append(row)
    return rows


def pack_documents(ids: np.ndarray, offsets: np.ndarray, sequence_len: int, window: int | None = None) -> Packed:
    """Pack documents into full rows, each beginning with BOS, in a mixed order; cut documents where none fits.

    Args:
        ids: (N,) uint16 or uint32, all documents in a sequence, each beginning with BOS.
        offsets: (documents + 1,), document i is ids[offsets[i] : offsets[i + 1]].
    """
    packed = _mixed(best_fit(np.diff(offsets).tolist(), sequence_len + 1, cut=True, window=window))
    begins = offsets.tolist()
    rows = np.empty((len(packed), sequence_len + 1), dtype=ids.dtype)
    used = 0
    for row, spans in zip(rows, packed, strict=True):
        at = 0
        for document, start, stop in spans:
            begin = begins[document]
            if start:
                row[at] = ids[begin]  # BOS
                at += 1
            row[at : at + stop - start] = ids[begin + start : begin + stop]
            at += stop - start
            used += stop - start
        assert at == len(row)
    return Packed(rows, len(begins) - 1, used, len(ids) - used)


def pack_conversations(
    conversations: Sequence[tuple[Sequence[int], Sequence[int]]],
    sequence_len: int,
    pad: int,
    dtype: type[np.uint16] | type[np.uint32],
) -> Packed:
    """Pack conversations into rows, in a mixed order, without cutting them; pad rows with tokens that carry no loss.

    A conversation longer than T + 1 tokens is truncated.

    Args:
        conversations: (ids, mask) each, of equal lengths; mask is 1 where the token carries loss as a target.
        pad: the token that fills rows.
        dtype: of the rows; it must hold every id.
    """
    lengths = [len(ids) for ids, _ in conversations]
    packed = _mixed(best_fit(lengths, sequence_len + 1, cut=False, window=CONVERSATION_WINDOW))
    rows = np.zeros((len(packed), 2, sequence_len + 1), dtype=dtype)
    rows[:, 0] = pad
    used = 0
    for row, spans in zip(rows, packed, strict=True):
        at = 0
        for conversation, start, stop in spans:
            ids, mask = conversations[conversation]
            row[0, at : at + stop - start] = ids[start:stop]
            row[1, at : at + stop - start] = mask[start:stop]
            row[1, at] = 0  # never a target: the token before it belongs to another conversation
            at += stop - start
        used += at
    return Packed(rows, len(lengths), used, sum(lengths) - used)


def _mixed(rows: list[list[Span]]) -> list[list[Span]]:
    """Permute rows, always in the same way: best fit goes by length, and documents of one length are often alike."""
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]

"""Packing fills every row, loses only the last row, and equals a naive search; conversations are never cut."""

import doctest
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raychat.data import packing
from raychat.data.packing import CONVERSATION_WINDOW, Span, best_fit, pack_conversations, pack_documents

BOS, PAD = 1, 0
T = 7

lengths_of_documents = st.lists(st.integers(0, 40), max_size=60)
windows = st.one_of(st.none(), st.integers(1, 12))


def size(span: Span) -> int:
    """Tokens that a span takes in a row; a rest has an inserted BOS."""
    _, start, stop = span
    return stop - start + (start > 0)


def slow_best_fit(lengths: list[int], capacity: int, cut: bool, window: int | None) -> list[list[Span]]:
    """The same rules, written naively: plain lists of (document, start, size) are searched again for every span."""
    coming = [(i, 0, n if cut else min(n, capacity)) for i, n in enumerate(lengths) if n]
    window = len(coming) if window is None else window
    waiting, coming = coming[:window], coming[window:]
    rows: list[list[Span]] = [[]]
    while waiting:
        space = capacity - sum(map(size, rows[-1]))
        fitting = [item for item in waiting if item[2] <= space]
        if not space or not (fitting or cut):
            rows.append([])
            continue
        chosen = max(fitting, key=lambda item: item[2]) if fitting else min(waiting, key=lambda item: item[2])
        waiting.remove(chosen)
        document, start, left = chosen
        while left > space:  # cut, and while the rest is longer than a row, fill rows
            rows[-1].append((document, start, start + space - (start > 0)))
            rows.append([])
            start, left, space = rows[-2][-1][2], left - space + 1, capacity
        if fitting:
            rows[-1].append((document, start, start + left - (start > 0)))
            waiting, coming = waiting + coming[:1], coming[1:]
        else:
            waiting.append((document, start, left))
    if not rows[-1] or (cut and sum(map(size, rows[-1])) < capacity):
        rows.pop()
    return rows


@given(lengths_of_documents, st.integers(2, 20), st.booleans(), windows)
def test_equals_a_naive_search(lengths: list[int], capacity: int, cut: bool, window: int | None) -> None:
    assert best_fit(lengths, capacity, cut=cut, window=window) == slow_best_fit(lengths, capacity, cut, window)


@given(lengths_of_documents, st.integers(2, 20), windows)
def test_cut_rows_are_full_and_hold_every_document_in_order_but_for_the_last_row(
    lengths: list[int], capacity: int, window: int | None
) -> None:
    rows = best_fit(lengths, capacity, cut=True, window=window)
    assert all(sum(map(size, row)) == capacity for row in rows)
    reached = [0] * len(lengths)
    for row in rows:
        for document, start, stop in row:
            assert start == reached[document]
            reached[document] = stop
        assert all(stop == lengths[document] for document, _, stop in row[:-1])  # only the end of a row may be a cut
    left = [(i, at, n) for i, (at, n) in enumerate(zip(reached, lengths, strict=True)) if at < n]
    assert sum(map(size, left)) < capacity  # what is left does not fill a row


@given(lengths_of_documents, st.integers(1, 20), windows)
def test_without_cut_every_document_is_in_exactly_one_row(
    lengths: list[int], capacity: int, window: int | None
) -> None:
    rows = best_fit(lengths, capacity, cut=False, window=window)
    assert all(0 < sum(stop - start for _, start, stop in row) <= capacity for row in rows)
    spans = sorted(span for row in rows for span in row)
    assert spans == [(i, 0, min(n, capacity)) for i, n in enumerate(lengths) if n]


def test_row_takes_the_longest_document_that_fits() -> None:
    assert best_fit([4, 7, 2, 3, 3], 10, cut=True)[0] == [(1, 0, 7), (3, 0, 3)]


def test_the_shortest_document_is_cut() -> None:
    assert best_fit([7, 6, 4, 8], 10, cut=True)[:2] == [[(3, 0, 8), (2, 0, 2)], [(0, 0, 7), (2, 2, 4)]]


def test_long_document_becomes_full_rows_and_its_rest_competes_again() -> None:
    rows = best_fit([27, 5], 10, cut=True)
    assert rows == [[(1, 0, 5), (0, 0, 5)], [(0, 5, 14)], [(0, 14, 23)]]  # a rest of 4 tokens does not fill a row
    assert best_fit([28, 5, 5], 10, cut=True)[-1] == [(0, 19, 28)]


def test_window_bounds_how_far_ahead_a_row_looks() -> None:
    assert best_fit([5, 1, 5], 10, cut=False, window=1) == [[(0, 0, 5), (1, 0, 1)], [(2, 0, 5)]]
    assert best_fit([5, 1, 5], 10, cut=False, window=2) == [[(0, 0, 5), (2, 0, 5)], [(1, 0, 1)]]


def test_fewer_tokens_than_a_row_give_no_full_row() -> None:
    assert best_fit([3, 4], 8, cut=True) == []
    assert best_fit([], 8, cut=True) == []
    assert best_fit([], 8, cut=False) == []


@pytest.mark.parametrize("capacity, window", [(1, None), (2, 0)])
def test_sizes_too_small_are_refused(capacity: int, window: int | None) -> None:
    with pytest.raises(ValueError, match="at least"):
        best_fit([1], capacity, cut=True, window=window)


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(packing).failed == 0


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents of BOS and `length` tokens each, every token only once."""
    token = iter(range(2, 10_000))
    return [[BOS, *(next(token) for _ in range(length))] for length in lengths]


def flat(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return np.array([token for document in documents for token in document], dtype=np.uint16), offsets


@given(st.lists(st.integers(0, 30), max_size=30), windows)
def test_document_rows_begin_with_bos_and_lose_less_than_a_row(lengths: list[int], window: int | None) -> None:
    documents = documents_of(lengths)
    packed = pack_documents(*flat(documents), sequence_len=T, window=window)
    assert packed.rows.dtype == np.uint16
    assert packed.rows.shape == (len(packed.rows), T + 1)
    following = {a: b for document in documents for a, b in pairwise(document[1:])}
    found: list[int] = []
    for row in packed.rows.tolist():
        assert row[0] == BOS
        for before, token in pairwise(row):
            assert BOS in (before, token) or following[before] == token  # in order, and a new text only after BOS
        found += [token for token in row if token != BOS]
    assert len(found) == len(set(found))
    assert packed.used + packed.lost == sum(map(len, documents))
    assert packed.lost <= T
    assert sum(lengths) - len(found) <= packed.lost <= sum(lengths) - len(found) + len(documents)


def test_counts_leave_inserted_bos_out() -> None:
    packed = pack_documents(*flat(documents_of([9, 1])), sequence_len=T)  # 2, then 6 of the 10; BOS and the other 4
    assert sorted(packed.rows.tolist()) == [[BOS, 11, BOS, 2, 3, 4, 5, 6]]
    assert (packed.used, packed.lost) == (8, 4)


def test_rows_are_mixed() -> None:
    """Of 400 documents that fill a row each, about 100 of the first 200 are in the first 200 rows (deviation 5)."""
    documents = documents_of([T] * 400)
    conversations = [(ids, [0] + [1] * T) for ids in documents]
    for rows in (pack_documents(*flat(documents), T).rows, pack_conversations(conversations, T, PAD, np.uint16).rows):
        first_tokens = rows.reshape(400, -1)[:, 1]
        assert 70 < np.count_nonzero(first_tokens[:200] < documents[200][1]) < 130


def test_same_documents_give_the_same_rows() -> None:
    documents = flat(documents_of([i * 7 % 31 for i in range(100)]))
    assert np.array_equal(pack_documents(*documents, T).rows, pack_documents(*documents, T).rows)


def conversations_of_tokens() -> st.SearchStrategy[list[tuple[list[int], list[int]]]]:
    token = st.tuples(st.integers(2, 99), st.integers(0, 1))
    conversation = st.lists(token, max_size=15).map(lambda c: ([BOS, *(i for i, _ in c)], [0, *(m for _, m in c)]))
    return st.lists(conversation, max_size=20)


@given(conversations_of_tokens())
def test_conversation_rows_are_unpacked_again_with_their_masks(
    conversations: list[tuple[list[int], list[int]]],
) -> None:
    packed = pack_conversations(conversations, T, PAD, np.uint16)
    rows = packed.rows
    assert rows.shape == (len(rows), 2, T + 1)
    found = []
    for ids, mask in rows.tolist():
        length = len(ids) - ids[::-1].index(next(i for i in reversed(ids) if i != PAD))
        assert not any(mask[length:])  # padding carries no loss
        starts = [at for at, token in enumerate(ids[:length]) if token == BOS]
        assert starts[0] == 0
        stops = [*starts[1:], length]
        found += [(ids[start:stop], mask[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    assert sorted(found) == sorted((ids[: T + 1], mask[: T + 1]) for ids, mask in conversations)
    assert packed.used == sum(len(ids) for ids, _ in found)
    assert packed.lost == sum(max(0, len(ids) - T - 1) for ids, _ in conversations)


def test_conversations_come_from_a_window() -> None:
    """A short conversation fills the gap of the first row only if it is within the window."""
    for num_before in (CONVERSATION_WINDOW, CONVERSATION_WINDOW + 1):
        conversations = [([BOS, *[10 + i] * 4], [0, 1, 1, 1, 1]) for i in range(num_before)] + [
            ([BOS, 9, 9], [0, 1, 1])
        ]
        rows = pack_conversations(conversations, T, PAD, np.uint16).rows[:, 0].tolist()
        beside = 10 + num_before - CONVERSATION_WINDOW  # it enters the window when this one leaves it
        assert [row for row in rows if 9 in row] == [[BOS, *[beside] * 4, BOS, 9, 9]]


def test_first_token_of_a_conversation_is_never_a_target() -> None:
    rows = pack_conversations([([BOS, 5], [1, 1]), ([BOS, 6], [1, 1])], T, PAD, np.uint16).rows
    assert rows.tolist() == [[[BOS, 5, BOS, 6, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0, 0]]]


def test_large_vocabulary_takes_four_bytes() -> None:
    assert pack_conversations([([70000], [0])], T, PAD, np.uint32).rows[0, 0, 0] == 70000

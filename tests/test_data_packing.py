import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raychat.data import packing
from raychat.data.packing import Span, best_fit

lengths_of_documents = st.lists(st.integers(0, 40), max_size=60)


def slow_best_fit(lengths: list[int], capacity: int, crop: bool, buffer_size: int) -> list[list[Span]]:
    """The same rules, written as naively as they read: a plain list is searched again for every piece."""
    waiting = [i for i, length in enumerate(lengths) if length]
    length = lengths if crop else [min(n, capacity) for n in lengths]
    rows: list[list[Span]] = []
    while waiting:
        row: list[Span] = []
        space = capacity
        while space and waiting:
            buffer = waiting[:buffer_size]
            fitting = [i for i in buffer if length[i] <= space]
            if fitting:
                chosen = max(fitting, key=lambda i: (length[i], -i))
            elif crop:
                chosen = min(buffer, key=lambda i: (length[i], -i))
            else:
                break
            waiting.remove(chosen)
            row.append((chosen, 0, min(length[chosen], space)))
            space -= row[-1][2]
        if space == 0 or not crop:
            rows.append(row)
    return rows


@given(lengths_of_documents, st.integers(1, 20), st.booleans(), st.integers(1, 12))
def test_equals_a_naive_search(lengths: list[int], capacity: int, crop: bool, buffer_size: int) -> None:
    expected = slow_best_fit(lengths, capacity, crop, buffer_size)
    assert best_fit(lengths, capacity, crop=crop, buffer_size=buffer_size) == expected


@given(lengths_of_documents, st.integers(1, 20), st.integers(1, 12))
def test_cropped_rows_are_full_and_only_the_documented_crop_is_lost(
    lengths: list[int], capacity: int, buffer_size: int
) -> None:
    rows = best_fit(lengths, capacity, crop=True, buffer_size=buffer_size)
    assert all(sum(stop - start for _, start, stop in row) == capacity for row in rows)
    for row in rows:
        for document, start, stop in row[:-1]:  # only the last piece of a row may be cropped
            assert (start, stop) == (0, lengths[document])
        assert row[-1][1] == 0
        assert row[-1][2] <= lengths[row[-1][0]]
    placed = [document for row in rows for document, _, _ in row]
    assert len(placed) == len(set(placed))
    assert sum(lengths) - sum(lengths[i] for i in placed) < capacity  # the row that the documents did not fill


@given(lengths_of_documents, st.integers(1, 20), st.integers(1, 12))
def test_without_crop_every_document_is_in_exactly_one_row(lengths: list[int], capacity: int, buffer_size: int) -> None:
    rows = best_fit(lengths, capacity, crop=False, buffer_size=buffer_size)
    assert all(0 < sum(stop - start for _, start, stop in row) <= capacity for row in rows)
    pieces = sorted(piece for row in rows for piece in row)
    assert pieces == [(i, 0, min(n, capacity)) for i, n in enumerate(lengths) if n]


def test_row_takes_the_longest_document_that_fits() -> None:
    assert best_fit([4, 7, 2, 3, 3], 10, crop=True)[0] == [(1, 0, 7), (3, 0, 3)]


def test_buffer_bounds_how_far_ahead_a_row_looks() -> None:
    assert best_fit([5, 1, 5], 10, crop=False, buffer_size=1) == [[(0, 0, 5), (1, 0, 1)], [(2, 0, 5)]]
    assert best_fit([5, 1, 5], 10, crop=False, buffer_size=2) == [[(0, 0, 5), (2, 0, 5)], [(1, 0, 1)]]


def test_fewer_tokens_than_a_row_give_no_cropped_row() -> None:
    assert best_fit([3, 4], 8, crop=True) == []
    assert best_fit([], 8, crop=True) == []
    assert best_fit([], 8, crop=False) == []


@pytest.mark.parametrize("capacity, buffer_size", [(0, 1), (1, 0)])
def test_sizes_must_be_positive(capacity: int, buffer_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_fit([1], capacity, crop=True, buffer_size=buffer_size)


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(packing).failed == 0

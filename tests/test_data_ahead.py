"""Items made ahead: in order, not too many, with their errors, by a thread that ends."""

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from raychat.data.ahead import ahead

WAIT_S = 60.0  # for a thread of this process; only a failing test waits that long


def threads() -> set[threading.Thread]:
    """The threads that make items; one of an earlier test may be about to end."""
    return {thread for thread in threading.enumerate() if thread.name == "ahead"}


def test_items_keep_their_order_and_end() -> None:
    assert list(ahead(iter(range(50)), 3)) == list(range(50))
    assert list(ahead(iter(()), 3)) == []


def test_so_many_items_are_made_ahead_and_no_more() -> None:
    made: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        for number in count():
            made.append(number)
            if number == 4:
                enough.set()
            yield number

    before, items = threads(), ahead(numbers(), 3)
    assert [next(items), next(items)] == [0, 1]
    assert enough.wait(WAIT_S)  # without being asked for them
    (thread,) = threads() - before
    thread.join(0.1)  # it must not make more: a fast machine shows it, a slow one cannot fail
    assert made == [0, 1, 2, 3, 4]
    items.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_where_its_item_would_be() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third")

    items = ahead(numbers(), 8)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(items)


@pytest.mark.parametrize("num", [1, 4])
def test_the_thread_ends_when_nobody_asks_any_more(num: int) -> None:
    before, items = threads(), ahead(count(), num)
    next(items)
    (thread,) = threads() - before
    del items  # closes it, as the end of the loop that it was made for does
    thread.join(WAIT_S)
    assert not thread.is_alive()

"""Make what is needed next while what is there is used."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], num: int) -> Iterator[T]:
    """Yield an iterator's items, which a thread makes up to `num` ahead, in their order.

    An exception of the iterator is raised where its item would have been yielded. The thread starts with the first
    `next`. It ends with the iterator, or with the item in the making where this generator is closed; it does not keep
    the process alive.
    """
    made: SimpleQueue[Future[T]] = SimpleQueue()
    room = threading.Semaphore(num)  # items that may be made
    closed = threading.Event()

    def make() -> None:
        while room.acquire() and not closed.is_set():
            result: Future[T] = Future()
            made.put(result)
            try:
                result.set_result(next(items))
            except BaseException as error:
                result.set_exception(error)
                return

    threading.Thread(target=make, name="ahead", daemon=True).start()
    try:
        while True:
            try:
                item = made.get().result()
            except StopIteration:
                return
            room.release()
            yield item
    finally:
        closed.set()
        room.release()

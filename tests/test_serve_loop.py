"""Events on their way from the engine's thread to a coroutine."""

import asyncio
import threading

import pytest

from raychat.engine.request import Event, Finish
from raychat.serve.loop import EventStream

LONG_S = 1000.0  # the tests are over long before


def event(token: int, finish: Finish | None = None) -> Event:
    return Event(1, token, None, True, finish)


def put_from_a_thread(stream: EventStream, item: Event | Exception) -> None:
    thread = threading.Thread(target=stream.put, args=(0, item))
    thread.start()
    thread.join()


def test_the_end_of_an_answer_does_not_wait_for_more_tokens_to_gather() -> None:
    async def last_tokens() -> list[int]:
        stream = EventStream()
        put_from_a_thread(stream, event(7))
        first = await stream.take()
        gathering = asyncio.create_task(stream.gather(LONG_S))
        await asyncio.sleep(0)
        put_from_a_thread(stream, event(8, "stop"))
        await asyncio.wait_for(gathering, LONG_S / 2)
        return [event.token for _, event in (*first, *await stream.take())]

    assert asyncio.run(last_tokens()) == [7, 8]


def test_an_error_does_not_wait_either() -> None:
    async def fail() -> None:
        stream = EventStream()
        put_from_a_thread(stream, RuntimeError("the engine has failed"))
        await asyncio.wait_for(stream.gather(LONG_S), LONG_S / 2)
        await stream.take()

    with pytest.raises(RuntimeError, match="has failed"):
        asyncio.run(fail())


def test_tokens_gather_for_the_time_that_was_asked_for() -> None:
    async def gathered() -> int:
        stream = EventStream()
        for token in range(3):
            put_from_a_thread(stream, event(token))
        await stream.gather(0.01)
        return len(await stream.take())

    assert asyncio.run(gathered()) == 3

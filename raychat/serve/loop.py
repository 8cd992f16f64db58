"""An engine in a thread of its own, so that passes through the model never block the event loop."""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from raychat.engine.engine import Engine
from raychat.engine.request import EngineStats, Event
from raychat.engine.sampling import SamplingParams


class Work(NamedTuple):
    """What the engine continues, and how."""

    prompt: Sequence[int]
    params: SamplingParams


class EngineLoop:
    """Step an engine while it is busy and hand its events to the coroutines that wait for them.

    Only the thread touches the engine. Coroutines send it commands, which it runs between two steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.error: str | None = None  # what ended the engine; every later request fails with it
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Of everything that waits or runs, by the engine's id: where its events go, and its place there.
        self._streams: dict[int, tuple[EventStream, int]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def add(self, works: Sequence[Work]) -> "EventStream":
        """Queue work and return the stream of its events; call it in a coroutine."""
        stream = EventStream()
        self._commands.put(partial(self._add, works, stream))
        return stream

    def cancel(self, stream: "EventStream", index: int | None = None) -> None:
        """Drop the work at an index, None = all of a stream, before the next step; finished work is left alone."""
        self._commands.put(partial(self._cancel, stream, index))

    async def stats(self) -> EngineStats:
        """Return the engine's statistics between two steps."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[EngineStats] = loop.create_future()

        def resolve(stats: EngineStats) -> None:
            if not answer.done():
                answer.set_result(stats)

        def ask() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(resolve, self._engine.stats())

        self._commands.put(ask)
        return await answer

    def close(self) -> None:
        """End the thread after its present step, and with it what holds the engine in memory."""

        def end() -> None:
            self._closed = True

        self._commands.put(end)
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            steps = self.error is None and self._engine.busy
            with contextlib.suppress(queue.Empty):
                self._commands.get(block=not steps)()
                continue
            try:
                self._step()
            except Exception as e:
                self.error = f"the engine has failed: {e!r}"
                for stream, index in self._streams.values():
                    stream.put(index, RuntimeError(self.error))
                self._streams.clear()

    def _step(self) -> None:
        for event in self._engine.step():
            stream, index = self._streams[event.id]
            stream.put(index, event)
            if event.finish:
                del self._streams[event.id]

    def _add(self, works: Sequence[Work], stream: "EventStream") -> None:
        for index, work in enumerate(works):
            try:
                if self.error is not None:
                    raise RuntimeError(self.error)
                id = self._engine.add(work.prompt, work.params)
            except (ValueError, RuntimeError) as e:
                self._cancel(stream, None)
                stream.put(index, e)
                return
            stream.ids.append(id)
            self._streams[id] = stream, index

    def _cancel(self, stream: "EventStream", index: int | None) -> None:
        for id in stream.ids if index is None else stream.ids[index : index + 1]:
            if self._streams.pop(id, None):
                self._engine.cancel(id)


class EventStream:
    """The events of one request's work, on their way from the engine's thread to one coroutine."""

    def __init__(self) -> None:
        self.ids: list[int] = []  # of the work in the engine, in its order, once the engine has it
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[int, Event | Exception]] = deque()
        self._some, self._ended = asyncio.Event(), asyncio.Event()

    def put(self, index: int, item: Event | Exception) -> None:
        """Add an event, or the error that ends the stream, from the engine's thread.

        The event loop is woken only if the coroutine waits: while it is busy with earlier events, a token costs nothing
        there.
        """
        self._items.append((index, item))
        ended = isinstance(item, Exception) or item.finish is not None
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so nobody reads it
            if not self._some.is_set():
                self._loop.call_soon_threadsafe(self._some.set)
            if ended:
                self._loop.call_soon_threadsafe(self._ended.set)

    async def gather(self, seconds: float) -> None:
        """Let events gather for some time, or until work ends: nobody waits for the last tokens of an answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        self._ended.clear()

    async def take(self) -> list[tuple[int, Event]]:
        """Wait for at least one event and return all that came since the last call, each with the index of its work.

        Raises:
            ValueError: the engine refused the work.
            RuntimeError: the engine has failed.
        """
        while not self._items:
            self._some.clear()
            if not self._items:  # an event may have come before `clear`, without a wake
                await self._some.wait()
        events: list[tuple[int, Event]] = []
        while self._items:
            index, item = self._items.popleft()
            if isinstance(item, Exception):
                raise item
            events.append((index, item))
        return events

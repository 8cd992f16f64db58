"""An engine in a thread of its own, so that passes through the model never block the event loop."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

from raychat.engine.engine import Engine
from raychat.engine.request import Event
from raychat.engine.sampling import SamplingParams


class EngineLoop:
    """Step an engine while it is busy and hand its events to the coroutines that wait for them.

    Only the thread touches the engine. Coroutines send it commands, which it runs between two steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.error: Exception | None = None  # what ended the engine; every later request fails with it
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, EventStream] = {}  # of the requests that wait or run, by request id
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def add(self, prompt: Sequence[int], params: SamplingParams) -> "EventStream":
        """Queue a request and return the stream of its events; call it in a coroutine."""
        stream = EventStream()
        self._commands.put(partial(self._add, prompt, params, stream))
        return stream

    def cancel(self, stream: "EventStream") -> None:
        """Drop a request before the next step; a finished one is left alone."""
        self._commands.put(partial(self._cancel, stream))

    def _run(self) -> None:
        while True:
            steps = self.error is None and self._engine.busy
            with contextlib.suppress(queue.Empty):
                self._commands.get(block=not steps)()
                continue
            try:
                self._step()
            except Exception as e:
                self.error = e
                for stream in self._streams.values():
                    stream.put(e)
                self._streams.clear()

    def _step(self) -> None:
        for event in self._engine.step():
            self._streams[event.id].put(event)
            if event.finish:
                del self._streams[event.id]

    def _add(self, prompt: Sequence[int], params: SamplingParams, stream: "EventStream") -> None:
        if self.error is not None:
            stream.put(self.error)
            return
        try:
            stream.id = self._engine.add(prompt, params)
        except ValueError as e:
            stream.put(e)
        else:
            self._streams[stream.id] = stream

    def _cancel(self, stream: "EventStream") -> None:
        if self._streams.pop(stream.id, None):
            self._engine.cancel(stream.id)


class EventStream:
    """The events of one request, on their way from the engine's thread to one coroutine."""

    def __init__(self) -> None:
        self.id = 0  # of the request, once the engine has it
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def put(self, item: Event | Exception) -> None:
        """Add an event, or the error that ends the stream, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so nobody reads it
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def take(self) -> list[Event]:
        """Wait for at least one event and return all that came since the last call."""
        events: list[Event] = []
        while not events or not self._items.empty():
            item = await self._items.get()
            if isinstance(item, Exception):
                raise RuntimeError(f"the engine has failed: {item!r}") from item
            events.append(item)
        return events

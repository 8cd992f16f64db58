"""An engine in a thread of its own: passes through the model never hold up the event loop, nor it them."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from raychat.engine.engine import Engine, Event
from raychat.engine.sampling import SamplingParams


class EngineLoop:
    """Step an engine as long as it is busy, and hand its events to the coroutines that asked.

    Only the thread touches the engine; all else reaches it as commands, between two steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.error: BaseException | None = None  # what ended the engine; from then on every request fails with it
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}  # by request id; those that are still open
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Requests that are waiting or running."""
        return len(self._streams)

    async def events(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[list[Event], None]:
        """Yield a request's events, each time all that came since the last; closing the iterator cancels the request.

        Raises:
            ValueError: as `Engine.add`.
            RuntimeError: the engine has failed; the cause is attached.
        """
        stream = _Stream()
        self._commands.put(partial(self._add, prompt, params, stream))
        finished = False
        try:
            while not finished:
                events = await stream.take()
                finished = events[-1].finish is not None
                yield events
        finally:
            if not finished:
                self._commands.put(partial(self._cancel, stream))

    def close(self) -> None:
        """End the thread after the step it is in."""
        self._commands.put(None)
        self._thread.join()

    # ---------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while self._obey():
            if self.error is None and self._engine.busy:
                try:
                    self._step()
                except Exception as e:
                    self._fail(e)

    def _obey(self) -> bool:
        """Run all commands there are, waiting for one when there is nothing else to do; False = the last one came."""
        wait = self.error is not None or not self._engine.busy
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _step(self) -> None:
        for event in self._engine.step():
            stream = self._streams[event.id]
            stream.put(event)
            if event.finish:
                del self._streams[event.id]

    def _fail(self, error: Exception) -> None:
        self.error = error
        for stream in self._streams.values():
            stream.put(_engine_failed(error))
        self._streams.clear()

    def _add(self, prompt: Sequence[int], params: SamplingParams, stream: "_Stream") -> None:
        try:
            if self.error is not None:
                raise _engine_failed(self.error)
            stream.id = self._engine.add(prompt, params)
        except (ValueError, RuntimeError) as e:
            stream.put(e)
        else:
            self._streams[stream.id] = stream

    def _cancel(self, stream: "_Stream") -> None:
        if self._streams.pop(stream.id, None):
            self._engine.cancel(stream.id)


def _engine_failed(cause: BaseException) -> RuntimeError:
    error = RuntimeError(f"the engine has failed: {cause!r}")
    error.__cause__ = cause
    return error


class _Stream:
    """Events on their way from the engine's thread to one coroutine."""

    def __init__(self) -> None:
        self.id = 0  # of the request, once the engine knows it
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._items: list[Event | Exception] = []

    def put(self, item: Event | Exception) -> None:
        """Called in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._append, item)

    def _append(self, item: Event | Exception) -> None:
        self._items.append(item)
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Return what has come, at least one event."""
        await self._arrived.wait()
        self._arrived.clear()
        items, self._items = self._items, []
        events = [item for item in items if isinstance(item, Event)]
        for item in items:
            if isinstance(item, Exception):
                raise item
        return events

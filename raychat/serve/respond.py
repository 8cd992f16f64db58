"""Answer a request with what a backend generates: whole or streamed, for as long as the client is there."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer
from raychat.serve.events import Gathered, Tally, Writer, error_event
from raychat.serve.metrics import ServerMetrics
from raychat.serve.types import (
    DEFAULT_NAMES,
    ChatRequest,
    CompletionRequest,
    Delta,
    DetokenizeRequest,
    Failure,
    TokenizeRequest,
)

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that went away
RETRY_AFTER_S = 2  # in answers with status 429 and 503

Deltas = AsyncGenerator[Delta | Failure, None]
T = TypeVar("T")


class Backend(Protocol):
    """What answers requests: one model or several, in this process or others."""

    async def cards(self) -> list[ModelCard]: ...  # the first is the default
    def stream(self, request: ChatRequest | CompletionRequest) -> Deltas: ...
    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure: ...
    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure: ...
    async def metrics(self) -> str: ...  # in Prometheus's text format
    async def check(self) -> None: ...  # raises when no model can answer


class Responder:
    """Answer requests that generate. max_queued: answers that may wait for their first token."""

    def __init__(self, backend: Backend, max_queued: int, metrics: ServerMetrics) -> None:
        self._backend, self._max_queued, self._metrics = backend, max_queued, metrics
        self._num_queued = 0

    async def respond(
        self, request: ChatRequest | CompletionRequest, http: Request, kind: Callable[[str, bool], Writer]
    ) -> Response:
        """Wait for the first delta, so that an error before it is an HTTP status; then stream or collect the rest.

        Args:
            kind: makes the writer, from the model's id and whether a stream ends with the usage.
        """
        start = time.perf_counter()
        if self._num_queued >= self._max_queued:
            return error_response(Failure(429, f"{self._num_queued} requests are waiting; try again in a moment"))
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        writer = kind(await self._name(request.model), with_usage)
        deltas = self._backend.stream(request)
        first = await self._first(deltas, http)
        if isinstance(first, Failure):
            return error_response(first)
        if first is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if request.stream:
            events = self._events(writer, first, deltas, start)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        answer = await unless_gone(http, self._whole(writer, first, deltas, start))
        return answer or Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _name(self, model: str | None) -> str:
        """Return the id of the model that answers."""
        return (await self._backend.cards())[0].id if model in DEFAULT_NAMES else str(model)

    async def _first(self, deltas: Deltas, http: Request) -> Delta | Failure | None:
        """Return the first delta, None when the client is gone; until then the request counts as queued."""

        async def first() -> Delta | Failure:
            return await anext(deltas)

        self._num_queued += 1
        self._metrics.queued.set(self._num_queued)
        try:
            return await unless_gone(http, first())
        finally:
            self._num_queued -= 1
            self._metrics.queued.set(self._num_queued)

    async def _events(self, writer: Writer, first: Delta, rest: Deltas, asked: float) -> AsyncIterator[str]:
        """Yield a streamed answer as server-sent events. Closing it closes `rest`, which cancels the request.

        Args:
            asked: when the request came.
        """
        began, tally = time.perf_counter(), Tally()
        tally.add(first)
        yield writer.events(first)
        async with contextlib.aclosing(rest):
            async for delta in rest:
                if isinstance(delta, Failure):
                    self._metrics.broken.inc()
                    yield error_event(delta)
                    return
                tally.add(delta)
                if events := writer.events(delta):
                    yield events
        yield writer.last(tally.usage())
        self._metrics.generated(began - asked, time.perf_counter() - began, tally.longest)

    async def _whole(self, writer: Writer, first: Delta, rest: Deltas, asked: float) -> Response:
        """Return a whole answer. asked: when the request came."""
        began = time.perf_counter() - first.held_s
        tally, choices = Tally(), {first.choice: [first]}
        tally.add(first)
        async with contextlib.aclosing(rest):
            async for delta in rest:
                if isinstance(delta, Failure):
                    return error_response(delta)
                tally.add(delta)
                choices.setdefault(delta.choice, []).append(delta)
        self._metrics.generated(began - asked, time.perf_counter() - began, tally.longest)
        answer = writer.whole([_gathered(choices[number]) for number in sorted(choices)], tally.usage())
        return Response(answer.model_dump_json(), media_type="application/json")


def _gathered(deltas: list[Delta]) -> Gathered:
    logprobs = tuple(token for delta in deltas for token in delta.logprobs)
    return Gathered("".join(delta.text for delta in deltas), logprobs, deltas[-1].finish or "length")


async def unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`; when the client goes away, cancel it and return None."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


def error_response(failure: Failure, headers: dict[str, str] | None = None) -> Response:
    """Return an error in the format of the OpenAI API. It is ASCII: it may show what is not valid Unicode."""
    retry = {"Retry-After": str(RETRY_AFTER_S)} if failure.status in (429, 503) else {}
    body = json.dumps(failure.body())
    return Response(body, failure.status, {**retry, **(headers or {})}, media_type="application/json")

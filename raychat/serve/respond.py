"""Answer a request with what a backend generates: whole or streamed, for as long as the client is there."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer
from raychat.serve.events import ChatWriter, Gathered, Tally, TextWriter, error_event
from raychat.serve.metrics import ServerMetrics
from raychat.serve.types import (
    DEFAULT_NAMES,
    ChatRequest,
    CompletionRequest,
    Delta,
    DetokenizeRequest,
    Failure,
    TokenizeRequest,
    TokenLogprob,
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

    async def chat(self, request: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        return await self._respond(request, http, ChatWriter)

    async def complete(self, request: CompletionRequest, http: Request) -> Response:
        """Continue prompts."""
        return await self._respond(request, http, TextWriter)

    async def _respond(
        self, request: ChatRequest | CompletionRequest, http: Request, kind: type[ChatWriter] | type[TextWriter]
    ) -> Response:
        """Wait for the first delta, so that an error before it is an HTTP status; then stream or collect the rest."""
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
        timed = self._timed(first, deltas, time.perf_counter() - start)
        if request.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(self._events(writer, timed), media_type="text/event-stream", headers=headers)
        answer = await unless_gone(http, _whole(writer, timed))
        return Response(status_code=CLIENT_CLOSED_REQUEST) if answer is None else answer

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

    async def _timed(self, first: Delta, rest: Deltas, ttft_s: float) -> Deltas:
        """Yield all deltas and record how long they took. Closing it closes `rest`, which cancels the request."""
        start, tally = time.perf_counter(), Tally()
        tally.add(first)
        yield first
        async with contextlib.aclosing(rest):
            async for delta in rest:
                if isinstance(delta, Failure):
                    self._metrics.broken.inc()
                    yield delta
                    return
                tally.add(delta)
                yield delta
        self._metrics.timed(ttft_s, time.perf_counter() - start, tally.completion_tokens)

    async def _events(self, writer: ChatWriter | TextWriter, deltas: Deltas) -> AsyncIterator[str]:
        """Yield a streamed answer as server-sent events."""
        tally = Tally()
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                if isinstance(delta, Failure):
                    yield error_event(delta)
                    return
                tally.add(delta)
                if events := writer.events(delta):
                    yield events
        yield writer.last(tally.usage())


async def _whole(writer: ChatWriter | TextWriter, deltas: Deltas) -> Response:
    """Return a whole answer."""
    tally, choices = Tally(), dict[int, list[Delta]]()
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            if isinstance(delta, Failure):
                return error_response(delta)
            tally.add(delta)
            choices.setdefault(delta.choice, []).append(delta)
    gathered = [_gathered(choices[index]) for index in sorted(choices)]
    return Response(writer.whole(gathered, tally.usage()).model_dump_json(), media_type="application/json")


def _gathered(deltas: list[Delta]) -> Gathered:
    logprobs: tuple[TokenLogprob, ...] = tuple(token for delta in deltas for token in delta.logprobs)
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

"""The OpenAI API and the chat page over HTTP, for any backend that answers chat requests."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from raychat.serve.page import page_router
from raychat.serve.types import ChatRequest, Delta, Failure, ModelCard, no_such_model

HEALTH_TIMEOUT_S = 10.0
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that went away
RETRY_AFTER_S = 2  # in answers with status 429 and 503

Deltas = AsyncGenerator[Delta | Failure, None]


class Backend(Protocol):
    """What answers requests: a `ChatService`, in this process or another."""

    card: ModelCard

    def stream(self, request: ChatRequest) -> Deltas: ...
    async def check(self) -> None: ...  # raises when no model can answer


def make_app(backend: Backend) -> FastAPI:
    """Return the web application: POST /v1/chat/completions, GET /v1/models, /health, and the page at /."""
    app = FastAPI(title="raychat", description="Chat with a raychat model, in the format of the OpenAI API.")

    @app.get("/health")
    async def health() -> JSONResponse:
        try:
            await asyncio.wait_for(backend.check(), HEALTH_TIMEOUT_S)
        except Exception as e:
            return _error(Failure(503, f"the model does not answer: {e!r}"))
        return JSONResponse({"status": "ok", "model": backend.card.id})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [backend.card]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Any:
        return backend.card if name == backend.card.id else _error(no_such_model(name, backend.card))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        return await _answer(backend, request, http)

    app.include_router(page_router())
    _handle_errors(app)
    return app


async def _answer(backend: Backend, request: ChatRequest, http: Request) -> Response:
    """Wait for the first delta, so that an error before it is an HTTP status; then stream or collect the rest."""
    kind = "chat.completion.chunk" if request.stream else "chat.completion"
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": backend.card.id}
    deltas = backend.stream(request)
    first = await anext(deltas)
    if isinstance(first, Failure):
        return _error(first)
    if not request.stream:
        return await _completion(head, first, deltas, http)
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    events = _events(head, first, deltas, include_usage)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _completion(head: dict[str, Any], first: Delta, rest: Deltas, http: Request) -> Response:
    """Return the whole answer; closing `rest` cancels the request when the client is gone."""
    text, last = first.text, first
    async with contextlib.aclosing(rest):
        async for delta in rest:
            if isinstance(delta, Failure):
                return _error(delta)
            if await http.is_disconnected():
                return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it
            text, last = text + delta.text, delta
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish or "length"}
    return JSONResponse({**head, "choices": [choice], "usage": _usage(last)})


async def _events(head: dict[str, Any], first: Delta, rest: Deltas, include_usage: bool) -> AsyncIterator[str]:
    """Yield a streamed answer as server-sent events, those of one delta together."""

    def event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        fields = {**head, "choices": choices, "usage": usage}
        return f"data: {json.dumps(fields, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        return event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def chunks(delta: Delta) -> str:
        text = chunk({"content": delta.text}) if delta.text else ""
        return text + (chunk({}, delta.finish) if delta.finish else "")

    yield chunk({"role": "assistant", "content": ""}) + chunks(first)
    last = first
    async with contextlib.aclosing(rest):
        async for delta in rest:
            if isinstance(delta, Failure):
                yield f"data: {json.dumps(delta.body())}\n\n"
                return
            yield chunks(delta)
            last = delta
    yield (event([], _usage(last)) if include_usage else "") + "data: [DONE]\n\n"


def _usage(last: Delta) -> dict[str, int]:
    prompt, completion = last.prompt_tokens, last.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _error(failure: Failure) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if failure.status in (429, 503) else None
    return JSONResponse(failure.body(), status_code=failure.status, headers=headers)


def _handle_errors(app: FastAPI) -> None:
    """Answer every error in the format of the OpenAI API."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(_invalid(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _error(Failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def crash(request: Request, error: Exception) -> JSONResponse:
        return _error(Failure(500, f"internal error: {type(error).__name__}"))


def _invalid(error: dict[str, Any]) -> Failure:
    """Return the failure for the first error that pydantic found in a request's body."""
    if error["type"] == "json_invalid":
        return Failure(400, f"the body is not JSON: {error['ctx']['error']}")
    field = ".".join(map(str, error["loc"][1:]))  # after "body"
    if error["type"] == "unsupported":  # an error of types.py, whose message names the field
        return Failure(400, error["msg"], field or error["ctx"]["param"])
    return Failure(400, f"{field}: {error['msg']}", field or None)

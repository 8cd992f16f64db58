"""The OpenAI API and the chat page over HTTP, for whatever backend answers the requests."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from raychat.engine.engine import Finish
from raychat.serve.types import (
    Answer,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Failure,
    ModelCard,
    ModelList,
    Piece,
    Usage,
    no_such_model,
)

HEALTH_TIMEOUT_S = 10.0
CLIENT_GONE = 499  # as nginx logs a client that closed its request
RETRY_AFTER_S = 2  # what a client that was turned away is told

Pieces = AsyncGenerator[Piece | Failure, None]


class Backend(Protocol):
    """What answers requests: a `ChatService`, or one in another process."""

    card: ModelCard

    def stream(self, request: ChatRequest) -> Pieces: ...
    async def check(self) -> None: ...  # raises when there is nobody to answer


def make_app(backend: Backend) -> FastAPI:
    """Return the web application: POST /v1/chat/completions, GET /v1/models, /health, and the page at /."""
    app = FastAPI(title="raychat", description="Chat with a raychat model, in the format of the OpenAI API.")
    page = files("raychat.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> JSONResponse:
        try:
            await asyncio.wait_for(backend.check(), HEALTH_TIMEOUT_S)
        except Exception as e:
            return _error(Failure(503, f"the model does not answer: {e!r}"))
        return JSONResponse({"status": "ok", "model": backend.card.id})

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[backend.card])

    @app.get("/v1/models/{name}", response_model=ModelCard)
    async def model(name: str) -> Any:
        return backend.card if name == backend.card.id else _error(no_such_model(name, backend.card))

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: ChatRequest, http: Request) -> Any:
        return await _answer(backend, request, http)

    _say_errors_as_openai_does(app)
    return app


# ---------------------------------------------------------------------------------------------- answers


class _Head(NamedTuple):
    """What all parts of one answer share."""

    id: str
    created: int  # Unix time
    model: str


async def _answer(backend: Backend, request: ChatRequest, http: Request) -> Response | ChatCompletion:
    """Wait for the first piece, so that what is wrong with a request is an HTTP status; then stream or collect."""
    head = _Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), backend.card.id)
    pieces = backend.stream(request)
    first = await anext(pieces)
    if isinstance(first, Failure):
        return _error(first)
    if not request.stream:
        return await _collected(head, first, pieces, http)
    events = _events(head, first, pieces, request.include_usage)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _all(first: Piece, rest: Pieces) -> Pieces:
    """Yield all pieces; when nobody wants more of them, the backend is told."""
    yield first
    async with contextlib.aclosing(rest) as pieces:
        async for piece in pieces:
            yield piece


async def _collected(head: _Head, first: Piece, rest: Pieces, http: Request) -> Response | ChatCompletion:
    text, tokens, finish = "", 0, None
    async with contextlib.aclosing(_all(first, rest)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Failure):
                return _error(piece)
            if await http.is_disconnected():
                return Response(status_code=CLIENT_GONE)  # nobody reads it
            text, tokens, finish = text + piece.text, tokens + piece.num_tokens, piece.finish
    choice = Choice(message=Answer(content=text), finish_reason=finish or "length")
    return ChatCompletion(**head._asdict(), choices=[choice], usage=_usage(first, tokens))


async def _events(head: _Head, first: Piece, rest: Pieces, include_usage: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed answer."""

    def chunk(delta: dict[str, str], finish: Finish | None = None) -> str:
        return _event(ChatChunk(**head._asdict(), choices=[ChunkChoice(delta=delta, finish_reason=finish)]))

    yield chunk({"role": "assistant", "content": ""})
    tokens = 0
    async with contextlib.aclosing(_all(first, rest)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Failure):
                yield f"data: {json.dumps(piece.body())}\n\n"
                return
            tokens += piece.num_tokens
            if piece.text:
                yield chunk({"content": piece.text})
            if piece.finish:
                yield chunk({}, piece.finish)
    if include_usage:
        yield _event(ChatChunk(**head._asdict(), choices=[], usage=_usage(first, tokens)))
    yield "data: [DONE]\n\n"


def _event(chunk: ChatChunk) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _usage(piece: Piece, tokens: int) -> Usage:
    prompt = piece.prompt_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=tokens, total_tokens=prompt + tokens)


# ---------------------------------------------------------------------------------------------- errors


def _error(failure: Failure) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if failure.status in (429, 503) else None
    return JSONResponse(failure.body(), status_code=failure.status, headers=headers)


def _say_errors_as_openai_does(app: FastAPI) -> None:
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
    """Return the first thing that pydantic found wrong with a request's body."""
    if error["type"] == "json_invalid":
        return Failure(400, f"the body is not JSON: {error['ctx']['error']}")
    place = ".".join(map(str, error["loc"][1:]))  # after "body"
    if error["type"] == "unsupported":  # our own words, which name the field
        return Failure(400, error["msg"], place or error["ctx"]["param"])
    return Failure(400, f"{place}: {error['msg']}", place or None)

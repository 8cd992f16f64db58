"""The OpenAI API and the chat page over HTTP, for any backend that answers requests."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from raychat.serve.answers import (
    ChatCompletion,
    DetokenizeAnswer,
    ErrorAnswer,
    ModelCard,
    ModelList,
    Status,
    TextCompletion,
    TokenizeAnswer,
    TokenizerInfo,
    no_such_model,
)
from raychat.serve.events import ChatWriter, TextWriter
from raychat.serve.limits import guarded_route
from raychat.serve.metrics import CONTENT_TYPE, CountAnswers, ServerMetrics
from raychat.serve.page import page_router
from raychat.serve.respond import Backend as Backend
from raychat.serve.respond import Responder, error_response
from raychat.serve.settings import ServerSettings
from raychat.serve.types import (
    MAX_SHOWN,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Failure,
    TokenizeRequest,
)

HEALTH_TIMEOUT_S = 10.0

_MEANINGS = {
    400: "The request is wrong",
    401: "The API key is missing or unknown",
    404: "There is no such model",
    413: "The body is too large",
    429: "Too many requests: try again after the seconds in Retry-After",
    500: "The model failed",
    503: "No model can answer now: try again after the seconds in Retry-After",
}


def make_app(
    backend: Backend, settings: ServerSettings | None = None, labels: Mapping[str, str] | None = None
) -> FastAPI:
    """Return the web application: the OpenAI API below /v1, its neighbours, and the page at /.

    Args:
        labels: of the server's metrics.
    """
    settings = settings or ServerSettings()
    app = _App(title="raychat", description="Chat with a raychat model, in the format of the OpenAI API.")
    metrics = ServerMetrics(labels)
    app.include_router(page_router())
    app.include_router(_state(backend, metrics))
    app.include_router(_api(backend, settings, metrics))
    app.add_middleware(CountAnswers, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    _handle_errors(app)
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document without status 422, which FastAPI adds: `_handle_errors` answers 400 instead."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def _state(backend: Backend, metrics: ServerMetrics) -> APIRouter:
    """Return the routes that watch the server; they ask for no API key."""
    router = APIRouter()

    @router.get("/health", response_model=Status, responses=_errors(503))
    @router.get("/ready", response_model=Status, responses=_errors(503))
    async def health() -> Any:
        try:
            await asyncio.wait_for(backend.check(), HEALTH_TIMEOUT_S)
            return Status(model=(await backend.cards())[0].id)
        except Exception as e:
            return error_response(Failure(503, f"the model does not answer: {e!r}"))

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        try:
            engines = await asyncio.wait_for(backend.metrics(), HEALTH_TIMEOUT_S)
        except Exception as e:
            engines = f"# the engines do not answer: {e!r}\n"
        return Response(metrics.text() + engines, media_type=CONTENT_TYPE)

    return router


def _api(backend: Backend, settings: ServerSettings, metrics: ServerMetrics) -> APIRouter:
    """Return the routes that answer clients."""
    responder = Responder(backend, settings.max_queued, metrics)
    # The key is only described here; guarded_route looks at it, before the body is read.
    key, refusals = ([Security(HTTPBearer(auto_error=False))], (401, 429)) if settings.api_keys else ([], ())
    router = APIRouter(route_class=guarded_route(settings), dependencies=key)
    lookup, body = _errors(404, 500, 503, *refusals), _errors(400, 404, 413, 429, 500, 503, *refusals)
    generation = {**body, **_streamed()}

    @router.get("/v1/models", response_model=ModelList, responses=lookup)
    async def models() -> ModelList:
        return ModelList(data=await backend.cards())

    @router.get("/v1/models/{name}", response_model=ModelCard, responses=lookup)
    async def model(name: str) -> Any:
        cards = await backend.cards()
        found = [card for card in cards if card.id == name]
        return found[0] if found else error_response(no_such_model(name, cards))

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=generation)
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        return await responder.respond(request, http, ChatWriter)

    @router.post("/v1/completions", response_model=TextCompletion, responses=generation)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        return await responder.respond(request, http, TextWriter)

    @router.post("/tokenize", response_model=TokenizeAnswer, responses=body)
    async def tokenize(request: TokenizeRequest) -> Any:
        answer = await backend.tokenize(request)
        return error_response(answer) if isinstance(answer, Failure) else answer

    @router.get("/tokenizer_info", response_model=TokenizerInfo, responses=lookup)
    async def tokenizer_info() -> TokenizerInfo:
        return TokenizerInfo()

    @router.post("/detokenize", response_model=DetokenizeAnswer, responses=body)
    async def detokenize(request: DetokenizeRequest) -> Any:
        answer = await backend.detokenize(request)
        return error_response(answer) if isinstance(answer, Failure) else answer

    return router


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in sorted(statuses)}


def _streamed() -> dict[int | str, dict[str, Any]]:
    description = "The answer; with `stream` as server-sent events, each with a part of it, the last one [DONE]"
    event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
    return {200: {"description": description, "content": {"text/event-stream": {"itemSchema": event}}}}


def _handle_errors(app: FastAPI) -> None:
    """Answer every error in the format of the OpenAI API."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_invalid(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        failure: Any = error.detail  # a text where it is not from limits.py
        if not isinstance(failure, Failure):
            failure = Failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return error_response(failure, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def crash(request: Request, error: Exception) -> Response:
        return error_response(Failure(500, f"internal error: {type(error).__name__}"))


def _invalid(error: dict[str, Any]) -> Failure:
    """Return the failure for the first error that pydantic found in a request's body."""
    if error["type"] == "json_invalid":
        return Failure(400, f"the body is not JSON: {error['ctx']['error']}")
    field = ".".join(map(str, error["loc"][1:]))[:MAX_SHOWN]  # after "body"
    if error["type"] == "unsupported":  # an error of types.py, whose message names the field
        return Failure(400, error["msg"], field or error["ctx"]["param"])
    return Failure(400, f"{field or 'the body'}: {error['msg']}", field or None)

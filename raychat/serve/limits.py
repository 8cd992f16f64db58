"""What is refused before a request is read: unknown API keys, too many requests, too large bodies."""

import contextlib
import gc
import hmac
import json
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope

from raychat.serve.settings import ServerSettings
from raychat.serve.types import MAX_CHOICES, Failure

MAX_FIELDS = 10_000  # of all objects in a body
MAX_TOKEN_IDS = 2048 * MAX_CHOICES  # of all prompts in a body


def refused(failure: Failure, headers: dict[str, str] | None = None) -> HTTPException:
    """Return the exception that ends a request with a failure."""
    return HTTPException(failure.status, failure, headers)


def guarded_route(settings: ServerSettings) -> type[APIRoute]:
    """Return the class of the routes that ask for an API key, if there are any, and bound the body."""
    rates = RateLimit(settings.requests_per_minute)

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                if settings.api_keys:
                    rates.count(known_key(request.headers.get("authorization", ""), settings.api_keys))
                return await handle(BoundedRequest(request.scope, request.receive, settings))

            return guarded

    return GuardedRoute


def known_key(authorization: str, keys: tuple[str, ...]) -> str:
    """Return the API key that a request brings, after comparing it with all keys in constant time.

    Raises:
        HTTPException: status 401.
    """
    scheme, _, given = authorization.partition(" ")
    found = [key for key in keys if hmac.compare_digest(key.encode(), given.strip().encode("latin-1"))]
    if scheme.lower() == "bearer" and found:
        return found[0]
    message = "expected an API key of this server in the header: Authorization: Bearer KEY"
    raise refused(Failure(401, message, code="invalid_api_key"), {"WWW-Authenticate": "Bearer"})


class RateLimit:
    """Let each key send so many requests a minute, all of them at once if it likes. None = no limit."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self._per_minute = requests_per_minute
        self._left: dict[str, tuple[float, float]] = {}  # by key: requests that it may send, and when that was so

    def count(self, key: str) -> None:
        """Count a request of a key. Raises HTTPException with status 429 when there were too many."""
        if self._per_minute is None:
            return
        now, full = time.monotonic(), float(self._per_minute)
        left, since = self._left.get(key, (full, now))
        left = min(full, left + (now - since) * full / 60)
        if left < 1:
            wait_s = math.ceil((1 - left) * 60 / full)
            message = f"more than {self._per_minute} requests a minute with this API key; try again in {wait_s} s"
            raise refused(Failure(429, message, code="rate_limit_exceeded"), {"Retry-After": str(wait_s)})
        self._left[key] = left - 1, now


class BoundedRequest(Request):
    """A request whose body is refused as soon as it is too large, before it is parsed and validated."""

    def __init__(self, scope: Scope, receive: Receive, settings: ServerSettings) -> None:
        super().__init__(scope, receive)
        self._settings = settings

    async def body(self) -> bytes:
        """Return the body. Raises HTTPException with status 413."""
        if not hasattr(self, "_body"):
            limit, chunks, size = self._settings.max_body_bytes, [], 0
            length = self.headers.get("content-length", "")
            announced = int(length) if length.isdecimal() else 0
            too_large = refused(Failure(413, f"the body has more than {limit} bytes; send less at once"))
            if announced > limit:
                raise too_large
            async for chunk in self.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """Return the parsed body. Raises HTTPException with status 400."""
        body = await self.body()
        with _no_collections():
            data = json.loads(body)
        if isinstance(data, dict) and (failure := excess(data, self._settings)):
            raise refused(failure)
        return data


def excess(data: dict[str, Any], settings: ServerSettings) -> Failure | None:
    """Return the failure for a body that would take long to validate; what is wrong otherwise is not looked at."""
    for number, most, what, param, code in _sizes(data, settings):
        if number > most:
            return Failure(400, f"{number} {what}; expected at most {most}", param, code)
    return None


def _sizes(data: dict[str, Any], settings: ServerSettings) -> Iterator[tuple[int, int, str, str | None, str]]:
    """Yield what a body has much of: the number, its limit, of what, the field, and the code for too much."""
    messages, prompt, tokens = data.get("messages"), data.get("prompt"), data.get("tokens")
    messages = messages if isinstance(messages, list) else []
    objects: list[Any] = [message for message in messages if isinstance(message, dict)]
    contents = [message.get("content") for message in objects]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    number = len(messages) + len(parts)
    yield number, settings.max_messages, "messages, parts included", "messages", "array_above_max_length"
    several = isinstance(prompt, list) and not isinstance(next(iter(prompt), None), int)  # else one text, or its ids
    prompts: Any = prompt if several else [prompt]
    yield len(prompts), MAX_CHOICES, "prompts", "prompt", "array_above_max_length"
    for ids, param in ((prompts, "prompt"), ([tokens], "tokens")):
        number = sum(len(one) for one in ids if isinstance(one, list))
        yield number, MAX_TOKEN_IDS, "token ids", param, "array_above_max_length"
    objects += [data, data.get("logit_bias"), data.get("stream_options"), *parts]
    number = sum(len(fields) for fields in objects if isinstance(fields, dict))
    yield number, MAX_FIELDS, "fields", None, "object_above_max_properties"
    texts = [*prompts, *contents, *(part.get("text") for part in parts if isinstance(part, dict))]
    number = sum(len(text) for text in texts if isinstance(text, str))
    param = "messages" if messages else "prompt"
    yield number, settings.max_characters, "characters", param, "string_above_max_length"


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for garbage: among a million new lists it would do so for seconds."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""What is refused before a request is read: unknown API keys, too many requests, too large bodies."""

import hmac
import json
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope

from raychat.serve.settings import ServerSettings
from raychat.serve.types import Failure

MAX_FIELDS = 10_000  # of all objects in a body


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
        data = json.loads(await self.body())
        if isinstance(data, dict) and (failure := excess(data, self._settings)):
            raise refused(failure)
        return data


def excess(data: dict[str, Any], settings: ServerSettings) -> Failure | None:
    """Return the failure for a body that would take long to validate; what is wrong otherwise is not looked at."""
    prompt, messages = data.get("prompt"), data.get("messages")
    messages = messages if isinstance(messages, list) else []
    objects: list[Any] = [message for message in messages if isinstance(message, dict)]
    contents = [message.get("content") for message in objects]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if (number := len(messages) + len(parts)) > settings.max_messages:
        message = f"{number} messages, parts included; expected at most {settings.max_messages}"
        return Failure(400, message, "messages", "array_above_max_length")
    objects += [data, data.get("logit_bias"), *parts]
    if (number := sum(len(fields) for fields in objects if isinstance(fields, dict))) > MAX_FIELDS:
        return Failure(400, f"{number} fields; expected at most {MAX_FIELDS}", code="object_above_max_properties")
    texts = [*(prompt if isinstance(prompt, list) else [prompt]), *contents]
    texts += [part.get("text") for part in parts if isinstance(part, dict)]
    characters = sum(len(text) for text in texts if isinstance(text, str))
    if characters > settings.max_characters:
        message = f"{characters} characters; expected at most {settings.max_characters}"
        return Failure(400, message, "messages" if messages else "prompt", "string_above_max_length")
    return None

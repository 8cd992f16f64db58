"""What the server refuses, and how: keys, rates, sizes, overload; clients that vanish."""

import asyncio
import contextlib
import gc
import hmac
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from fastapi import HTTPException
from test_serve import ASK, END, START, ask, client, num_open, service, slow_service, wait_until
from tiny import scripted_model
from tiny_server import http_server

from raychat.serve.limits import BoundedRequest, RateLimit, excess, known_key
from raychat.serve.settings import API_KEYS_VARIABLE, ServerSettings


def letters() -> Any:
    """A service that answers "abc" to every question."""
    return service(scripted_model([[START, *b"abc", END]]))


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    with http_server(letters(), ServerSettings(**settings)) as url:
        yield url


def post(url: str, body: Any, **settings: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, **settings)


def test_without_keys_only_this_machine_is_let_in() -> None:
    with pytest.raises(ValueError, match=f"lets other machines in.*{API_KEYS_VARIABLE}"):
        ServerSettings(host="0.0.0.0")
    for host in ("127.0.0.1", "::1", "localhost"):
        assert ServerSettings(host=host).host == host
    assert ServerSettings(host="0.0.0.0", api_keys=("secret",)).host == "0.0.0.0"


@pytest.mark.parametrize("wrong", [{"max_queued": 0}, {"max_body_bytes": -1}, {"requests_per_minute": 5}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServerSettings(**wrong)


def test_keys_come_from_the_environment_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, "key-1, key-2,")
    settings = ServerSettings.from_environment(port=0)
    assert (settings.api_keys, settings.port) == (("key-1", "key-2"), 0)
    assert "key-" not in repr(settings)


def test_api_keys_are_asked_for() -> None:
    with serving(api_keys=("one", "two")) as url:
        for key in ("one", "two"):
            assert ask(openai.OpenAI(base_url=f"{url}/v1", api_key=key)).choices[0].message.content == "abc"
        for wrong in ("three", "on", "onee", "ö"):
            refused = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {wrong}".encode()})
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY") as error:
            ask(client(url))
        assert error.value.code == "invalid_api_key"
        for path in ("v1/models", "v1/models/tiny-sft"):
            assert httpx.get(f"{url}/{path}").status_code == 401
        for path in ("v1/completions", "tokenize", "detokenize"):
            assert httpx.post(f"{url}/{path}", json={}).status_code == 401
        for path in ("", "health", "ready", "metrics"):
            assert httpx.get(f"{url}/{path}").status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert known_key("Bearer one", ("one", "two")) == "one"
    assert compared == [(b"one", b"one"), (b"two", b"one")]


def test_rate_of_a_key_is_limited() -> None:
    with serving(api_keys=("one", "two"), requests_per_minute=2) as url:

        def models(key: str) -> httpx.Response:
            return httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})

        assert [models("one").status_code for _ in range(3)] == [200, 200, 429]
        refused = models("one")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert models("two").status_code == 200


def test_rate_limit_lets_requests_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = RateLimit(60)
    for _ in range(60):
        limit.count("key")
    with pytest.raises(Exception, match="try again in 1 s"):
        limit.count("key")
    now += 1
    limit.count("key")
    with pytest.raises(Exception, match="60 requests a minute"):
        limit.count("key")


def test_pages_of_other_origins_need_to_be_allowed() -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with serving() as url:
        assert "access-control-allow-origin" not in httpx.options(f"{url}/v1/models", headers=asked).headers
    with serving(cors_origins=("https://page.example",)) as url:
        allowed = httpx.options(f"{url}/v1/models", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(f"{url}/v1/models", headers={**asked, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_large_body_is_refused_before_it_is_read() -> None:
    """The length is a lie in the second case: the server counts."""
    with serving(max_body_bytes=1000) as url:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
        for content in (body, (body[i : i + 500] for i in range(0, len(body), 500))):
            refused = httpx.post(f"{url}/v1/chat/completions", content=content)
            assert refused.status_code == 413
            assert "more than 1000 bytes" in refused.json()["error"]["message"]
        assert post(url, {"messages": ASK, "temperature": 0}).status_code == 200


PART = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    "body, message",
    [
        ({"messages": ASK * 11}, "11 messages, parts included; expected at most 10"),
        ({"messages": [{"role": "user", "content": [PART] * 10}]}, "11 messages"),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, "101 characters; expected at most 100"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 60}] * 2}]}, "120 characters"),
        ({"messages": ASK, **{f"x{i}": None for i in range(10_000)}}, "10003 fields"),
        ({"messages": ASK, "logit_bias": {str(i): 1 for i in range(10_000)}}, "fields; expected at most 10000"),
    ],
)
def test_too_much_in_a_body(body: dict[str, Any], message: str) -> None:
    with serving(max_messages=10, max_characters=100) as url:
        refused = post(url, body)
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]


def test_too_much_text_in_a_prompt() -> None:
    with serving(max_characters=100) as url:
        for prompt in ("x" * 101, ["x" * 60] * 2):
            refused = httpx.post(f"{url}/v1/completions", json={"prompt": prompt})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "body, message",
    [
        ({"prompt": [[]] * 129}, "129 prompts; expected at most 128"),
        ({"prompt": ["x"] * 129}, "129 prompts"),
        ({"prompt": [1] * 262_145}, "262145 token ids; expected at most 262144"),
        ({"prompt": [[1] * 131_073] * 2}, "262146 token ids"),
        ({"tokens": [1] * 262_145}, "262145 token ids"),
        ({"prompt": "x", "stream_options": {str(i): None for i in range(10_000)}}, "10002 fields"),
    ],
)
def test_too_much_around_a_prompt(body: dict[str, Any], message: str) -> None:
    failure = excess(body, ServerSettings())
    assert failure is not None
    assert message in failure.message
    assert failure.param in (None, next(iter(body)))


def test_as_much_as_is_allowed_in_a_prompt() -> None:
    for body in ({"prompt": ["x"] * 128}, {"prompt": [[1] * 2048] * 128}, {"tokens": [1] * 262_144}):
        assert excess(body, ServerSettings()) is None


VERY_MANY = {
    "messages": ("chat/completions", {"messages": [{"role": "user", "content": "x"}] * 100_000}),
    "empty messages": ("chat/completions", {"messages": [{}] * 1_000_000}),
    "parts": ("chat/completions", {"messages": [{"role": "user", "content": [PART, 5]}] * 50_000}),
    "prompts": ("completions", {"prompt": [[]] * 1_000_000}),
    "token ids": ("completions", {"prompt": [1] * 1_500_000}),
}


@pytest.mark.parametrize("route, body", VERY_MANY.values(), ids=VERY_MANY)
def test_very_much_in_a_body_holds_nobody_up(route: str, body: dict[str, Any]) -> None:
    """Four bodies of almost 4 MiB, at once; meanwhile others are answered."""
    content, headers = json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}
    with serving() as url:
        refused: list[httpx.Response] = []

        def send() -> None:
            refused.append(httpx.post(f"{url}/v1/{route}", content=content, headers=headers, timeout=60))

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        assert ask(client(url)).choices[0].message.content == "abc"
        for sender in senders:
            sender.join()
    answers = [(answer.status_code, answer.json()["error"]["code"]) for answer in refused]
    assert answers == [(400, "array_above_max_length")] * 4


def test_many_lists_are_parsed_without_a_search_for_garbage() -> None:
    """Python would look for it after every 700 new lists, and again and again in all of them."""
    body, collections = json.dumps({"prompt": [[]] * 100_000}).encode(), 0

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    def count(phase: str, info: dict[str, int]) -> None:
        nonlocal collections
        collections += phase == "start"

    request = BoundedRequest({"type": "http", "headers": []}, receive, ServerSettings())
    gc.callbacks.append(count)
    try:
        with pytest.raises(HTTPException):
            asyncio.run(request.json())
    finally:
        gc.callbacks.remove(count)
    assert collections < 20
    assert gc.isenabled()


def test_overload_is_refused_at_once_and_ends() -> None:
    """One request runs, two wait, and nobody else may; when they are through, everybody may again."""
    slow = slow_service(0.02, max_sequences=1)
    with http_server(slow, ServerSettings(max_queued=2)) as url:
        first = ask(client(url), stream=True)
        next(first), next(first)
        answers: list[Any] = []
        waiting = [threading.Thread(target=lambda: answers.append(ask(client(url), max_tokens=3))) for _ in range(2)]
        for thread in waiting:
            thread.start()
        assert wait_until(lambda: num_open(slow) == 3)
        refused = post(url, {"messages": ASK})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 0
        assert (answers, num_open(slow)) == ([], 3)  # it has waited for nobody, and the engine has not seen it
        assert httpx.get(f"{url}/health").status_code == 200
        first.close()
        for thread in waiting:
            thread.join()
        assert len(answers) == 2
        assert ask(client(url), max_tokens=3).choices[0].message.content == "abc"


async def vanish(url: str, number: int, streamed: bool) -> None:
    """Send many requests, and close every connection after a moment: most have not been answered at all by then."""

    async def one(session: aiohttp.ClientSession, i: int) -> None:
        body = {"messages": ASK, "stream": streamed, "max_tokens": 1000}
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(0.5 + 0.005 * i):
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    await answer.read()

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(one(session, i) for i in range(number)))


@pytest.mark.parametrize("streamed", [True, False])
def test_clients_that_vanish_leave_no_slot(streamed: bool) -> None:
    """200 clients of a server with four slots: those that wait leave the queue, those that run leave the engine."""
    slow = slow_service(0.01)
    with http_server(slow, ServerSettings(max_queued=1000)) as url:
        asyncio.run(vanish(url, 200, streamed))
        assert wait_until(lambda: num_open(slow) == 0, timeout_s=120)  # all answers would take 500 s
        assert ask(client(url), max_tokens=3).choices[0].message.content == "abc"
        metrics = httpx.get(f"{url}/metrics").text
        assert "raychat_queued 0.0" in metrics
        assert 'raychat_running{model="tiny-sft"} 0.0' in metrics

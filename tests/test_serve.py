"""The API as the real `openai` client sees it, over HTTP without Ray, and `jobs/serve.py --cluster.workers 0`."""

import contextlib
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import toy
from tiny import byte_tokenizer, random_model, scripted_model
from tiny_server import http_server

from jobs import serve
from raychat.checkpoint import save_checkpoint
from raychat.cluster import Cluster
from raychat.engine.engine import Engine
from raychat.serve.answers import ModelCard
from raychat.serve.run import announce
from raychat.serve.service import ChatService
from raychat.serve.settings import ServerSettings

REPO = Path(__file__).parent.parent
TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
START, END = SPECIAL["<|assistant_start|>"], SPECIAL["<|assistant_end|>"]
ASK = [{"role": "user", "content": "Hello?"}]
PROMPT_TOKENS = 1 + 1 + 6 + 1 + 1  # bos, user_start, the bytes, user_end, assistant_start


def service(model: Any, name: str = "tiny-sft", max_sequences: int = 4) -> ChatService:
    length, ideas = model.config.sequence_len, ["What is 6 * 7?"]
    card = ModelCard(id=name, created=1, max_model_len=length, suggestions=ideas)
    return ChatService(Engine(model, TOKENIZER, max_sequences=max_sequences), card)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(api: openai.OpenAI, **settings: Any) -> Any:
    return api.chat.completions.create(**{"model": "tiny-sft", "messages": ASK, "temperature": 0, **settings})


@pytest.fixture(scope="module")
def scripted() -> Iterator[openai.OpenAI]:
    """A model that says SAYS to every question, and goes on from any text with what comes after it there."""
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    scripts = [[START, *b"a ", *call], [SPECIAL["<|output_end|>"], *"é🙂xyz".encode(), END]]
    with http_server(service(scripted_model(scripts))) as url:
        yield client(url)


@pytest.fixture(scope="module")
def sampled() -> Iterator[openai.OpenAI]:
    """A model with random weights."""
    with http_server(service(random_model())) as url:
        yield client(url)


SAYS = "a <<6*7=42>>é🙂xyz"
NUM_TOKENS = 2 + 5 + 4 + 6 + 3 + 1  # text, call, forced answer, two characters, text, end


def test_whole_answer(scripted: openai.OpenAI) -> None:
    answer = ask(scripted)
    assert answer.choices[0].message.content == SAYS
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "tiny-sft", "chatcmpl-")
    assert abs(answer.created - time.time()) < 60
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, NUM_TOKENS)
    assert usage.total_tokens == PROMPT_TOKENS + NUM_TOKENS


def test_streamed_answer(scripted: openai.OpenAI) -> None:
    chunks = list(ask(scripted, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == SAYS
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert all(c.usage is None for c in chunks)


def test_streamed_usage_comes_last_and_without_choices(scripted: openai.OpenAI) -> None:
    chunks = list(ask(scripted, stream=True, stream_options={"include_usage": True}))
    assert [len(c.choices) for c in chunks] == [1] * (len(chunks) - 1) + [0]
    assert chunks[-1].usage.completion_tokens == NUM_TOKENS


def test_stream_is_server_sent_events(scripted: openai.OpenAI) -> None:
    response = httpx.post(f"{scripted.base_url}chat/completions", json={"messages": ASK, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(e.removeprefix("data: "))["choices"] for e in events[:-2])


def test_max_tokens_ends_with_length(scripted: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2, "max_tokens": 9}):
        answer = ask(scripted, **limit)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("a ", "length")
        assert answer.usage.completion_tokens == 2


def test_answer_cut_inside_a_character_is_still_text(scripted: openai.OpenAI) -> None:
    assert ask(scripted, max_tokens=12).choices[0].message.content == "a <<6*7=42>>\ufffd"


@pytest.mark.parametrize("stop", ["yz", ["nothing", "xy"], "é🙂"])
def test_stop_strings(scripted: openai.OpenAI, stop: Any) -> None:
    first = next(SAYS.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in SAYS)
    whole = ask(scripted, stop=stop).choices[0]
    assert (whole.message.content, whole.finish_reason) == (SAYS[:first], "stop")
    chunks = list(ask(scripted, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == SAYS[:first]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_seed_gives_same_answer_streamed_or_not(sampled: openai.OpenAI) -> None:
    settings = {"temperature": 1, "top_p": 0.9, "extra_body": {"top_k": 40}, "max_tokens": 40}
    whole = ask(sampled, seed=3, **settings).choices[0].message.content
    assert whole == ask(sampled, seed=3, **settings).choices[0].message.content
    assert whole == "".join(c.choices[0].delta.content or "" for c in ask(sampled, seed=3, stream=True, **settings))
    assert whole != ask(sampled, seed=4, **settings).choices[0].message.content


def test_top_k_one_is_temperature_zero(sampled: openai.OpenAI) -> None:
    greedy = ask(sampled, max_tokens=30).choices[0].message.content
    assert greedy == ask(sampled, max_tokens=30, temperature=1.5, extra_body={"top_k": 1}).choices[0].message.content


def test_conversation_is_rendered_whole(scripted: openai.OpenAI) -> None:
    """Tokens are counted by hand: a system message joined to the user's, an earlier answer with its tool call."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Six times"}, {"type": "text", "text": " seven?"}]},
        {"role": "assistant", "content": "It is <<6*7=42>>42."},
        *ASK,
    ]
    user = 1 + len("Be brief.\n\nSix times seven?") + 1
    assistant = 1 + len("It is ") + (1 + len("6*7") + 1) + (1 + len("42") + 1) + len("42.") + 1
    assert ask(scripted, messages=messages).usage.prompt_tokens == user + assistant + PROMPT_TOKENS


def test_answer_can_be_sent_back(scripted: openai.OpenAI) -> None:
    answer = ask(scripted).choices[0].message
    assert ask(scripted, messages=[*ASK, answer, *ASK]).choices[0].message.content == SAYS


def test_models(scripted: openai.OpenAI) -> None:
    assert [m.id for m in scripted.models.list()] == ["tiny-sft"]
    assert scripted.models.retrieve("tiny-sft").owned_by == "raychat"
    assert ask(scripted, model="raychat").model == "tiny-sft"
    with pytest.raises(openai.NotFoundError, match="'gpt-4'"):
        scripted.models.retrieve("gpt-4")


def test_health_and_page(scripted: openai.OpenAI) -> None:
    url = str(scripted.base_url).removesuffix("/v1/")
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "tiny-sft"}
    page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert "raychat" in page.text


@pytest.mark.parametrize(
    "wrong, param, message",
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"top_logprobs": 2}, "top_logprobs", "expected logprobs to be true"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "expected \\[\\]"),
        ({"extra_body": {"top_kk": 5}}, "top_kk", "unknown"),
        ({"extra_body": {"top_k": -2}}, "top_k", "greater than or equal to -1"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "got 5, expected a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "expected 'user'"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "messages", "end with a user message"),
        ({"messages": [{"role": "user", "content": "x" * 130}]}, "messages", "at most 128, the context"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_request_is_an_error_in_openai_format(
    scripted: openai.OpenAI, wrong: dict[str, Any], param: str, message: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        ask(scripted, stream=stream, **wrong)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_too_long_has_its_code(scripted: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(scripted, messages=[{"role": "user", "content": "x" * 500}])
    assert error.value.code == "context_length_exceeded"


def test_unknown_model_is_not_found(scripted: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny-sft'") as error:
        ask(scripted, model="gpt-4")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_broken_json_and_unknown_route(scripted: openai.OpenAI) -> None:
    url = str(scripted.base_url)
    broken = httpx.post(f"{url}chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert "not JSON" in broken.json()["error"]["message"]
    assert "a valid dictionary" in httpx.post(f"{url}chat/completions", json=[]).json()["error"]["message"]
    missing = httpx.get(f"{url}nowhere")
    assert missing.status_code == 404
    assert "GET /v1/nowhere" in missing.json()["error"]["message"]


def slow_service(step_s: float, max_sequences: int = 4) -> ChatService:
    """A service whose model repeats the alphabet and takes at least `step_s` per token."""
    model = scripted_model([[START, *range(97, 123), 97]], sequence_len=1024)
    model.lm_head.register_forward_pre_hook(lambda module, args: time.sleep(step_s))
    return service(model, max_sequences=max_sequences)


def num_open(service: ChatService) -> int:
    """Requests that wait or run."""
    return len(service._loop._streams)


def wait_until(true: Any, timeout_s: float = 300) -> bool:
    """Return whether it came true; the timeout only ends a test that has failed."""
    end = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_cancels_the_request(stream: bool) -> None:
    """The engine is held in its sixth step while the client leaves: there is no seventh."""
    steps, model = threading.Semaphore(5), scripted_model([[START, *range(97, 123), 97]], sequence_len=1024)

    def wait(module: Any, args: Any) -> None:
        steps.acquire()

    model.lm_head.register_forward_pre_hook(wait)
    held = service(model)
    body = json.dumps({"messages": ASK, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with http_server(held) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            assert wait_until(lambda: held._engine.stats().generated_tokens == 5)
        assert wait_until(lambda: not held._loop._commands.empty())  # the engine's thread is to cancel
        steps.release(1000)
        assert wait_until(lambda: num_open(held) == 0)
    assert held._engine.stats().generated_tokens <= 6


def test_requests_run_together() -> None:
    """A second request is answered while the first is still being streamed."""
    slow = slow_service(0.01)
    with http_server(slow) as url:
        first = ask(client(url), stream=True)
        next(first), next(first)
        assert ask(client(url), max_tokens=5).choices[0].message.content == "abcde"
        assert num_open(slow) == 1
        text = "".join(chunk.choices[0].delta.content or "" for chunk in itertools.islice(first, 5))
        assert text in "".join(chr(97 + i % 26) for i in range(2000))
        first.close()


def test_failed_engine_is_reported_and_unhealthy() -> None:
    def fail(module: Any, args: Any) -> None:
        raise FloatingPointError("boom")

    model = scripted_model([[START, *b"abcdef", END]])
    broken = service(model)
    with http_server(broken) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        model.lm_head.register_forward_pre_hook(fail)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="boom"):
                ask(client(url))
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert "boom" in health.json()["error"]["message"]


def test_failure_in_the_middle_of_a_stream_reaches_the_client() -> None:
    slow = slow_service(0.01)
    with http_server(slow) as url:
        stream = ask(client(url), stream=True)
        next(stream), next(stream)
        slow._engine.model.lm_head.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(openai.APIError, match="division by zero"):
            list(stream)


@contextlib.contextmanager
def more_streams_than_slots(api: openai.OpenAI) -> Iterator[None]:
    """Fill the one slot of a server with a long answer; three more requests wait for it, also at the block's end."""
    first = ask(api, stream=True)
    next(first)
    waiting = [threading.Thread(target=lambda: ask(api, stream=True).close(), daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    yield
    assert all(thread.is_alive() for thread in waiting)
    first.close()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()


def health(api: openai.OpenAI) -> int:
    """Return the status of /health."""
    return httpx.get(str(api.base_url).removesuffix("v1/") + "health", timeout=60).status_code


def test_health_answers_while_streams_fill_the_engine() -> None:
    with http_server(slow_service(0.02, max_sequences=1)) as url, more_streams_than_slots(client(url)):
        assert health(client(url)) == 200


JOB_WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # `import ray` fails
sys.argv = ["jobs/serve.py", "--cluster.workers", "0", *sys.argv[1:]]
import runpy
runpy.run_path("jobs/serve.py", run_name="__main__")
"""


def test_job_serves_without_ray_until_interrupted(raychat_home: Path) -> None:
    script = scripted_model([[START, *b"Hi", END]], sequence_len=64)
    save_checkpoint(str(raychat_home / "runs" / "r" / "sft"), script, None, TOKENIZER, toy.meta(3, script))
    command = [sys.executable, "-c", JOB_WITHOUT_RAY, "--port", "0", "--cors-origins", "https://page.example"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout
        output = ""
        while not (url := re.search(r"chat at (http://127\.0\.0\.1:\d+),", output)):
            line = job.stdout.readline()
            assert line, output
            output += line
        health = httpx.get(f"{url[1]}/health", headers={"Origin": "https://page.example"}, timeout=60)
        assert health.json() == {"status": "ok", "model": "r-sft"}
        assert health.headers["access-control-allow-origin"] == "https://page.example"
        assert ask(client(url[1]), model="r-sft").choices[0].message.content == "Hi"
        job.send_signal(signal.SIGINT)
        output += job.stdout.read()
    assert job.returncode == 0, output
    assert "RAYCHAT_API_KEYS): only this machine can connect" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("workers", ["0", "1"])
def test_port_in_use_is_an_error_before_anything_is_loaded(raychat_home: Path, workers: str) -> None:
    """There is no checkpoint either, but that is not what the job complains about."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "jobs/serve.py", "--port", port, "--cluster.workers", workers]
        job = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert job.returncode == 1
    assert re.search(rf"ValueError: cannot listen on 127\.0\.0\.1:{port}: .*in use.* --port N", job.stderr)
    assert "Started a local Ray instance" not in job.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_rate_without_keys_is_an_error_before_anything_is_loaded(raychat_home: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="requests_per_minute counts per API key, and there are none"):
        serve.run(serve.Args(requests_per_minute=5, cluster=Cluster(workers=workers)))


def test_server_says_who_can_connect(capsys: pytest.CaptureFixture[str]) -> None:
    announce(ServerSettings(), 8000, [8404, 9101])
    alone, statistics, where = capsys.readouterr().out.splitlines()
    assert "no API keys (RAYCHAT_API_KEYS): only this machine can connect to page and API" in alone
    assert "ports 8404 and 9101 show HAProxy's statistics to all machines" in statistics
    assert "chat at http://127.0.0.1:8000" in where
    announce(ServerSettings(host="0.0.0.0", api_keys=("secret",)), 8000)
    assert "all machines" not in (out := capsys.readouterr().out)
    assert len(out.splitlines()) == 1

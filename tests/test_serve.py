"""The API as the real `openai` client sees it: over HTTP alone for the details, and over Ray Serve for the whole."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from tiny import byte_tokenizer, http_server, random_model, scripted_model

from raychat.checkpoint import save_checkpoint
from raychat.engine.engine import Engine
from raychat.serve.service import ChatService
from raychat.serve.types import ModelCard
from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

# Read when Ray starts: a replica that is stopped need not wait 30 s for a load balancer to notice.
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0")

REPO = Path(__file__).parent.parent
TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
START, END = SPECIAL["<|assistant_start|>"], SPECIAL["<|assistant_end|>"]
ASK = [{"role": "user", "content": "Hello?"}]
PROMPT_TOKENS = 1 + 1 + 6 + 1 + 1  # bos, user_start, the bytes, user_end, assistant_start


def service(model: Any, name: str = "tiny-sft", max_sequences: int = 4) -> ChatService:
    card = ModelCard(id=name, created=1, max_model_len=model.config.sequence_len)
    return ChatService(Engine(model, TOKENIZER, max_sequences=max_sequences), card)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(api: openai.OpenAI, **settings: Any) -> Any:
    return api.chat.completions.create(**{"model": "tiny-sft", "messages": ASK, "temperature": 0, **settings})


@pytest.fixture(scope="module")
def scripted() -> Iterator[openai.OpenAI]:
    """A model that answers "a <<6*7=42>>é🙂xyz" whatever it is asked."""
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


# ---------------------------------------------------------------------------------------------- answers


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


# ---------------------------------------------------------------------------------------------- models, health, page


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


def test_page_works_offline() -> None:
    """No script, style, font or picture from elsewhere."""
    page = (REPO / "raychat/serve/page.html").read_text()
    assert "src=" not in page
    assert "@import" not in page
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    assert all(link.startswith("data:") for link in links)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "wrong, param, message",
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"n": 2}, "n", "got 2, expected 1"),
        ({"logprobs": True}, "logprobs", "got true, expected false"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "expected \\[\\]"),
        ({"extra_body": {"top_kk": 5}}, "top_kk", "unknown"),
        ({"extra_body": {"top_k": 0}}, "top_k", "greater than or equal to 1"),
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
def test_bad_request_is_told_as_openai_tells(
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


def test_what_is_no_json_and_no_route(scripted: openai.OpenAI) -> None:
    url = str(scripted.base_url)
    broken = httpx.post(f"{url}chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert "not JSON" in broken.json()["error"]["message"]
    assert "a valid dictionary" in httpx.post(f"{url}chat/completions", json=[]).json()["error"]["message"]
    missing = httpx.get(f"{url}nowhere")
    assert missing.status_code == 404
    assert "GET /v1/nowhere" in missing.json()["error"]["message"]


# ---------------------------------------------------------------------------------------------- the engine behind


def slow_service(step_s: float) -> ChatService:
    """A service whose model says the alphabet over and over, and takes at least `step_s` a token."""
    model = scripted_model([[START, *range(97, 123), 97]], sequence_len=1024)
    model.register_forward_pre_hook(lambda module, args: time.sleep(step_s))
    return service(model)


def wait_until(true: Any, timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_cancels_the_request(stream: bool) -> None:
    slow = slow_service(0.01)
    with http_server(slow) as url:
        if stream:
            answer = ask(client(url), stream=True)
            next(answer), next(answer)
            assert slow.num_open == 1
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                ask(client(url).with_options(timeout=0.3))
        assert wait_until(lambda: slow.num_open == 0, timeout_s=3)  # by itself it would go on for 10 s


def test_requests_run_together() -> None:
    """Two streams, begun one after the other, are answered at the same time."""
    slow = slow_service(0.01)
    with http_server(slow) as url:
        first = ask(client(url), stream=True, max_tokens=100)
        next(first), next(first)
        assert ask(client(url), max_tokens=5).choices[0].message.content == "abcde"
        assert slow.num_open == 1
        rest = "".join(c.choices[0].delta.content or "" for c in first)
        assert rest.endswith("".join(chr(97 + i % 26) for i in range(100))[-70:])


def test_failed_engine_is_reported_and_unhealthy() -> None:
    def fail(module: Any, args: Any) -> None:
        raise FloatingPointError("boom")

    model = scripted_model([[START, *b"abcdef", END]])
    broken = service(model)
    with http_server(broken) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        model.register_forward_pre_hook(fail)
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
        slow._engine.model.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(openai.APIError, match="division by zero"):
            list(stream)


# ---------------------------------------------------------------------------------------------- on Ray Serve

LETTERS = 26  # of the endless alphabet


@pytest.fixture(scope="module")
def trained_tokenizer() -> Tokenizer:
    import raychat_bpe

    text = "the quick brown fox jumps over the lazy dog and the dog says hello to the fox " * 3
    return Tokenizer.train(raychat_bpe.Counts([text], SPLIT_PATTERN), 300)


def write_chat_run(home: Path, tokenizer: Tokenizer, run: str = "tiny", stage: str = "sft") -> None:
    """Write a checkpoint that says the alphabet over and over, as long as its context of 4096 tokens lasts."""
    script = [tokenizer.special["<|assistant_start|>"], *range(97, 97 + LETTERS), 97]
    model = scripted_model([script], sequence_len=4096, vocab_size=tokenizer.vocab_size)
    save_checkpoint(str(home / "runs" / run / stage), 3, model, None, tokenizer, {})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    ray_cluster: None, trained_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """The application under Ray Serve, one replica of one sequence."""
    from ray import serve

    from raychat.cluster.serve import build

    home, port = tmp_path_factory.mktemp("served"), free_port()
    write_chat_run(home, trained_tokenizer)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"storage_path": str(home), "max_sequences": "1", "max_replicas": 1}), name="raychat")
    yield client(f"http://127.0.0.1:{port}")
    serve.shutdown()


@pytest.mark.ray
def test_ray_serve_answers(served: openai.OpenAI) -> None:
    assert [m.id for m in served.models.list()] == ["tiny-sft"]
    answer = ask(served, max_tokens=20)
    assert answer.choices[0].message.content == "abcdefghijklmnopqrst"
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 20)
    chunks = list(ask(served, max_tokens=200, stream=True))
    text = "".join(chr(97 + i % LETTERS) for i in range(200))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


@pytest.mark.ray
def test_ray_serve_page_health_and_errors(served: openai.OpenAI) -> None:
    url = str(served.base_url).removesuffix("/v1/")
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert "<title>raychat</title>" in httpx.get(url).text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(served, temperature=9, stream=True)
    with pytest.raises(openai.BadRequestError, match="4096, the context"):
        ask(served, messages=[{"role": "user", "content": "hello " * 5000}])


@pytest.mark.ray
def test_ray_serve_disconnect_frees_the_engine(served: openai.OpenAI) -> None:
    """The replica runs one sequence: the next question is answered long before the dropped one would have ended."""
    start = time.monotonic()
    ask(served, max_tokens=200)
    whole_s = (time.monotonic() - start) * 4000 / 200  # what a dropped answer of 4000 tokens would take, at least
    dropped = ask(served, stream=True)
    next(dropped), next(dropped)
    dropped.close()
    start = time.monotonic()
    assert ask(served, max_tokens=3).choices[0].message.content == "abc"
    assert time.monotonic() - start < max(whole_s / 2, 1)


@pytest.mark.ray
def test_ending_leaves_the_other_applications_of_a_joined_cluster(
    served: openai.OpenAI, trained_tokenizer: Tokenizer, raychat_home: Path
) -> None:
    """The last test of `served`, whose application it replaces and ends."""
    from ray import serve

    from raychat.cluster import Cluster
    from raychat.cluster.serve import serve_on_ray

    @serve.deployment
    class Other:
        pass

    write_chat_run(raychat_home, trained_tokenizer)
    serve.run(Other.bind(), name="other", route_prefix="/other")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end_it() -> None:
        while signal.getsignal(signal.SIGTERM) is handlers[signal.SIGTERM]:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_it, daemon=True).start()
    try:
        settings = {"storage_path": str(raychat_home), "max_sequences": 1, "max_replicas": 1}
        serve_on_ray(settings, "127.0.0.1", free_port(), Cluster())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert list(serve.status().applications) == ["other"]


def test_build_says_what_is_wrong(raychat_home: Path) -> None:
    from raychat.cluster.serve import build

    with pytest.raises(ValueError, match=r"runs='1': no such setting; expected one of run, stage"):
        build({"runs": "1"})
    with pytest.raises(ValueError, match="max_sequences='many'"):
        build({"max_sequences": "many"})
    with pytest.raises(ValueError, match="make speedrun-tiny"):
        build({})
    with pytest.raises(ValueError, match="stage='base'"):
        build({"stage": "base"})


def test_build_takes_home_from_where_it_runs(raychat_home: Path, trained_tokenizer: Tokenizer) -> None:
    from raychat.cluster.serve import build

    write_chat_run(raychat_home, trained_tokenizer, run="other", stage="rl")
    app = build({})
    (model,) = app._bound_deployment.init_args
    path, card, max_sequences = model._bound_deployment.init_args
    assert path == str(raychat_home / "runs" / "other" / "rl" / "step_000003")
    assert (card.id, card.max_model_len, max_sequences) == ("other-rl", 4096, 16)


def test_serve_config_is_what_serve_and_build_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    from raychat.cluster.serve import ServeArgs, build

    config = yaml.safe_load((REPO / "serve_config.yaml").read_text())
    parsed = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)  # Ray ignores what it does not know
    assert (parsed.http_options.host, parsed.http_options.port) == ("127.0.0.1", 8000)
    (app,) = parsed.applications
    assert app.import_path == f"{build.__module__}:{build.__name__}"
    ServeArgs.model_validate(app.args)

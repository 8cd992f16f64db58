"""Completions, log-probabilities, several choices and tokens, as the real `openai` client sees them."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from test_serve import ASK, END, PROMPT_TOKENS, SAYS, SPECIAL, START, TOKENIZER, ask, client, scripted, service
from tiny import random_model, scripted_model
from tiny_server import http_server

from raychat.model.gpt import GPT
from raychat.serve.metrics import ServerMetrics

__all__ = ["scripted"]  # a fixture
CONTEXT = 128
BOS = TOKENIZER.bos


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(sequence_len=CONTEXT)


@pytest.fixture(scope="module")
def random(model: GPT) -> Iterator[openai.OpenAI]:
    """A model with random weights."""
    with http_server(service(model, max_sequences=8)) as url:
        yield client(url)


def complete(api: openai.OpenAI, prompt: Any, **settings: Any) -> Any:
    return api.completions.create(**{"model": "tiny-sft", "prompt": prompt, "temperature": 0, **settings})


def id_of(name: str) -> int:
    """The id of a token as log-probabilities name it."""
    if name in SPECIAL:
        return SPECIAL[name]
    return int(name.removeprefix("bytes:\\x"), 16) if name.startswith("bytes:") else ord(name)


def logprobs_of(model: GPT, ids: list[int]) -> torch.Tensor:
    """The log-probabilities (T, V) after each token, by one pass without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].float().log_softmax(-1)


def test_completion_of_a_text(scripted: openai.OpenAI) -> None:
    answer = complete(scripted, "x")
    assert (answer.object, answer.id[:5], answer.model) == ("text_completion", "cmpl-", "tiny-sft")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("yz", "stop")
    assert answer.choices[0].logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 3, 5)


def test_completion_has_16_tokens_by_default(random: openai.OpenAI) -> None:
    answer = complete(random, "Hello", extra_body={"ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_prompts_of_text_and_of_tokens_are_the_same(random: openai.OpenAI) -> None:
    ids = [[BOS, *b"one"], [BOS, *b"three two"]]
    texts = [c.text for c in complete(random, ["one", "three two"], max_tokens=9).choices]
    assert texts == [c.text for c in complete(random, ids, max_tokens=9).choices]
    assert texts[1] == complete(random, ids[1], max_tokens=9).choices[0].text
    bare = complete(random, "one", max_tokens=9, extra_body={"add_special_tokens": False})
    assert bare.choices[0].text == complete(random, [*b"one"], max_tokens=9).choices[0].text


def test_choices_are_numbered_prompt_by_prompt(scripted: openai.OpenAI) -> None:
    answer = complete(scripted, ["x", "y"], n=2, echo=True)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "xyz"), (1, "xyz"), (2, "yz"), (3, "yz")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3 + 3 + 2 + 2)


def test_streamed_completion(scripted: openai.OpenAI) -> None:
    chunks = list(complete(scripted, ["x", "é"], stream=True, echo=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for chunk in chunks[:-1]:
        assert chunk.object == "text_completion"
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["xyz", "é🙂xyz"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3 + 8


def test_stop_string_ends_one_choice_only(scripted: openai.OpenAI) -> None:
    answer = complete(scripted, ["x", "y"], stop=["y"])
    assert [(c.text, c.finish_reason) for c in answer.choices] == [("", "stop"), ("z", "stop")]


def test_logprobs_of_a_completion(random: openai.OpenAI, model: GPT) -> None:
    prompt = [BOS, *b"Hello"]
    choice = complete(random, prompt, max_tokens=8, logprobs=3, extra_body={"ignore_eos": True}).choices[0]
    assert len(choice.logprobs.tokens) == 8
    expected = logprobs_of(model, prompt)[-1]
    top = choice.logprobs.top_logprobs[0]
    assert sorted(top.values(), reverse=True) == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert choice.logprobs.token_logprobs[0] == pytest.approx(expected.max().item(), abs=1e-4)
    assert choice.logprobs.tokens[0] in top


def test_prompt_is_scored_without_new_tokens(random: openai.OpenAI, model: GPT) -> None:
    """What lm-eval asks for: the likelihood of a text, token by token."""
    prompts = [[BOS, *b"The cat sat"], [BOS, *b"Hi"], [7]]
    answer = complete(random, prompts, echo=True, logprobs=1, max_tokens=0)
    assert answer.usage.completion_tokens == 0
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        assert choice.text == bytes(prompt[prompt[0] == BOS :]).decode()
        got = choice.logprobs
        assert (len(got.tokens), got.token_logprobs[0], got.top_logprobs[0]) == (len(prompt), None, None)
        expected = logprobs_of(model, prompt)
        own = [expected[i, token].item() for i, token in enumerate(prompt[1:])]
        assert got.token_logprobs[1:] == pytest.approx(own, abs=1e-4)
        best = [max(top.values()) for top in got.top_logprobs[1:]]
        assert best == pytest.approx([expected[i].max().item() for i in range(len(prompt) - 1)], abs=1e-4)


def test_echo_scores_prompt_and_answer_alike(random: openai.OpenAI) -> None:
    """Tokens that were generated get the same log-probabilities when they are sent back as a prompt."""
    prompt = [BOS, *b"Once"]
    made = complete(random, prompt, max_tokens=12, logprobs=2, echo=True, extra_body={"ignore_eos": True}).choices[0]
    ids = [id_of(name) for name in made.logprobs.tokens]
    assert (len(ids), ids[:5]) == (len(prompt) + 12, prompt)
    again = complete(random, ids, max_tokens=0, logprobs=2, echo=True).choices[0].logprobs
    assert (again.token_logprobs[0], made.logprobs.token_logprobs[0]) == (None, None)
    assert again.token_logprobs[1:] == pytest.approx(made.logprobs.token_logprobs[1:], abs=1e-4)


def test_text_offsets_are_places_in_the_text(scripted: openai.OpenAI) -> None:
    choice = complete(scripted, "é", echo=True, logprobs=0).choices[0]
    assert choice.text == "é🙂xyz"
    assert choice.logprobs.tokens[:3] == ["<|bos|>", "bytes:\\xc3", "bytes:\\xa9"]
    at = dict(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))
    assert [choice.text[at[letter]] for letter in "xyz"] == [*"xyz"]


def test_whole_context_can_be_scored(random: openai.OpenAI) -> None:
    prompt = [BOS, *([97] * (CONTEXT - 1))]
    assert len(complete(random, prompt, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs.tokens) == CONTEXT
    with pytest.raises(openai.BadRequestError, match="at most 128, the context") as error:
        complete(random, [*prompt, 97])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    "prompt, wrong, message",
    [
        ("x", {"suffix": "y"}, 'suffix: got "y"'),
        ("x", {"best_of": 2}, "best_of: got 2, expected 1"),
        ("x", {"max_tokens": 0}, "at least 1 without echo"),
        ("x", {"logprobs": 6}, "less than or equal to 5"),
        ("x", {"n": 129}, "less than or equal to 128"),
        (["x"] * 65, {"n": 2}, "asks for 130 answers"),
        ([], {}, "asks for 0 answers"),
        ([[]], {}, "the prompt has 0 tokens"),
        ([300], {}, "outside the vocabulary of 265"),
        ([True], {}, "a list of token ids"),
        ([1, "x"], {}, "a list of token ids"),
        ([2**40], {}, "a list of token ids"),
        ({"text": "x"}, {}, "expected a text"),
        ("x", {"logit_bias": {"300": 1}}, "outside the vocabulary of 265"),
        ("x", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("x", {"logit_bias": {"1": 101}}, "less than or equal to 100"),
    ],
)
def test_bad_completion_request(scripted: openai.OpenAI, prompt: Any, wrong: dict[str, Any], message: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message):
            complete(scripted, prompt, stream=stream, extra_body=wrong)


def test_several_chat_answers(random: openai.OpenAI) -> None:
    """They differ, the same seed repeats them, and the prompt is counted once."""
    settings = {"temperature": 1, "seed": 2**64 - 1, "n": 3, "max_tokens": 20}
    answer = ask(random, **settings)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert texts == [choice.message.content for choice in ask(random, **settings).choices]
    assert texts[0] == ask(random, **{**settings, "n": 1}).choices[0].message.content
    streamed = ["", "", ""]
    for chunk in ask(random, stream=True, **settings):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_logprobs_of_a_chat_answer(scripted: openai.OpenAI) -> None:
    """One entry for each token of the answer but its end, those of the tool's answer included."""
    content = ask(scripted, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    names = [token.token for token in content]
    assert names[:3] == ["a", " ", "<|python_start|>"]
    assert names[7:11] == ["<|output_start|>", "4", "2", "<|output_end|>"]
    assert bytes(byte for token in content[11:] for byte in token.bytes).decode() == "é🙂xyz"
    assert [len(token.top_logprobs) for token in content] == [2] * len(content)
    assert content[0].top_logprobs[0].token == "a"
    assert content[0].logprob == content[0].top_logprobs[0].logprob == pytest.approx(0, abs=1e-3)
    chunks = [c.choices[0] for c in ask(scripted, logprobs=True, top_logprobs=2, stream=True)]
    streamed = [token for c in chunks if c.logprobs for token in c.logprobs.content]
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, pytest.approx(t.logprob, abs=1e-4)) for t in content]


def test_logit_bias_decides(random: openai.OpenAI) -> None:
    wanted = ask(random, max_tokens=5, logit_bias={str(ord("q")): 100}, extra_body={"ignore_eos": True})
    assert wanted.choices[0].message.content == "qqqqq"


def test_penalties_prevent_repetition(random: openai.OpenAI) -> None:
    """Two tokens are far likelier than all others; a penalty makes them alternate."""
    bias = {str(ord("q")): 100, str(ord("z")): 99}
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 1.1}}):
        text = ask(random, max_tokens=4, logit_bias=bias, **penalty).choices[0].message.content
        assert {"q", "z"} == set(text)


def test_min_p_and_top_k_extensions(random: openai.OpenAI) -> None:
    greedy = ask(random, max_tokens=12).choices[0].message.content
    hot = {"temperature": 1.5, "max_tokens": 12, "seed": 1}
    assert ask(random, **hot, extra_body={"min_p": 1.0}).choices[0].message.content == greedy
    everything = ask(random, **hot).choices[0].message.content
    for top_k in (0, -1, 10_000):
        assert ask(random, **hot, extra_body={"top_k": top_k}).choices[0].message.content == everything


def test_parts_of_an_answer_are_marked(scripted: openai.OpenAI) -> None:
    """A client can tell a tool call from text that looks like one."""
    parts: list[list[str]] = [["text", ""]]
    for chunk in ask(scripted, stream=True):
        delta = chunk.choices[0].delta
        if hasattr(delta, "raychat_part"):
            parts.append([delta.raychat_part, ""])
        parts[-1][1] += delta.content or ""
    assert parts == [["text", "a "], ["python", "<<6*7"], ["python_output", "=42>>"], ["text", "é🙂xyz"]]
    assert "".join(text for _, text in parts) == SAYS


def test_text_that_looks_like_a_call_is_text() -> None:
    with http_server(service(scripted_model([[START, *b"<<1=2", END]]))) as url:
        chunks = list(ask(client(url), stream=True))
    assert not any(hasattr(c.choices[0].delta, "raychat_part") for c in chunks)


def tokenize(api: openai.OpenAI, **body: Any) -> Any:
    return httpx.post(str(api.base_url).removesuffix("/v1/") + "/tokenize", json=body).json()


def test_system_messages_are_joined(scripted: openai.OpenAI) -> None:
    system = [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}]
    joined = [{"role": "user", "content": "A\n\nB\n\nHello?"}]
    assert tokenize(scripted, messages=[*system, *ASK]) == tokenize(scripted, messages=joined)
    later = [*ASK, {"role": "assistant", "content": "x"}]
    assert tokenize(scripted, messages=[*later, *system, *ASK]) == tokenize(scripted, messages=[*later, *joined])
    assert ask(scripted, messages=[*system, *ASK]).choices[0].message.content == SAYS


@pytest.mark.parametrize("content", ["", None, []])
def test_empty_answer_can_be_sent_back(scripted: openai.OpenAI, content: Any) -> None:
    messages = [*ASK, {"role": "assistant", "content": content}, *ASK]
    user = [SPECIAL["<|user_start|>"], *b"Hello?", SPECIAL["<|user_end|>"], START]
    assert tokenize(scripted, messages=messages)["tokens"] == [BOS, *user, END, *user]
    assert ask(scripted, messages=messages).choices[0].message.content == SAYS


def test_tokens_of_a_prompt_and_back(scripted: openai.OpenAI) -> None:
    found = tokenize(scripted, prompt="hé", return_token_strs=True)
    assert found["tokens"] == [BOS, *"hé".encode()]
    assert (found["count"], found["max_model_len"]) == (4, CONTEXT)
    assert found["token_strs"][:2] == ["<|bos|>", "h"]
    bare = tokenize(scripted, prompt="hé", add_special_tokens=False)
    url = str(scripted.base_url).removesuffix("/v1/")
    assert httpx.post(f"{url}/detokenize", json={"tokens": bare["tokens"]}).json() == {"prompt": "hé"}
    assert tokenize(scripted, messages=ASK, add_generation_prompt=False)["count"] == PROMPT_TOKENS - 1


def test_special_tokens_are_found_by_name_where_nothing_else_is_asked(scripted: openai.OpenAI) -> None:
    url = str(scripted.base_url).removesuffix("/v1/")
    info = httpx.get(f"{url}/tokenizer_info").json()
    for name, id in ((info["bos_token"], BOS), (info["eos_token"], END)):
        assert tokenize(scripted, prompt=name, add_special_tokens=False)["tokens"] == [id]
        assert tokenize(scripted, prompt=name)["tokens"] == [BOS, *name.encode()]
        assert tokenize(scripted, prompt=f"{name} ", add_special_tokens=False)["tokens"] == [*name.encode(), 32]


@pytest.mark.parametrize(
    "route, body, message",
    [
        ("tokenize", {}, "either prompt or messages"),
        ("tokenize", {"prompt": "x", "messages": ASK}, "either prompt or messages"),
        ("tokenize", {"messages": [{"role": "assistant", "content": "x"}]}, "expected 'user'"),
        ("tokenize", {"prompt": "x", "model": "gpt-4"}, "'gpt-4' does not exist"),
        ("detokenize", {"tokens": [999]}, "outside the vocabulary"),
        ("detokenize", {"tokens": "x"}, "valid list"),
        ("detokenize", {"tokens": [1], "model": "gpt-4"}, "'gpt-4' does not exist"),
    ],
)
def test_bad_token_requests(scripted: openai.OpenAI, route: str, body: dict[str, Any], message: str) -> None:
    answer = httpx.post(str(scripted.base_url).removesuffix("/v1/") + f"/{route}", json=body)
    assert answer.status_code == (404 if "gpt-4" in message else 400)
    assert message in answer.json()["error"]["message"]


def test_metrics_count_requests_and_tokens(scripted: openai.OpenAI) -> None:
    url = str(scripted.base_url).removesuffix("/v1/")

    def metrics() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before = metrics()
    list(ask(scripted, stream=True))
    ask(scripted)
    with pytest.raises(openai.NotFoundError):
        ask(scripted, model="gpt-4")
    after = metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('raychat_requests_total{path="/v1/chat/completions",status="200"}') == 2
    assert grown('raychat_requests_total{path="/v1/chat/completions",status="404"}') == 1
    assert grown("raychat_time_to_first_token_seconds_count") == 2
    assert grown("raychat_time_per_output_token_seconds_count") == 2
    assert grown('raychat_prompt_tokens_total{model="tiny-sft"}') == 2 * PROMPT_TOKENS
    assert grown('raychat_generated_tokens_total{model="tiny-sft"}') == 2 * 21
    assert after['raychat_cache_tokens{model="tiny-sft"}'] >= CONTEXT
    assert all(math.isfinite(value) for value in after.values())


def test_metrics_of_several_servers_are_told_apart() -> None:
    metrics = ServerMetrics({"ingress": "a"})
    metrics.answered("/health", 200)
    assert 'raychat_requests_total{ingress="a",path="/health",status="200"} 1.0' in metrics.text()
    assert 'raychat_queued{ingress="a"} 0.0' in metrics.text()


def test_streams_are_what_openai_describes(scripted: openai.OpenAI) -> None:
    """Their events are written by hand, so every one is checked against the types of the `openai` package."""
    usage = {"stream_options": {"include_usage": True}, "stream": True}
    cases = {
        "chat/completions": (ChatCompletionChunk, {"messages": ASK, "logprobs": True, "top_logprobs": 1, "n": 2}),
        "completions": (Completion, {"prompt": ["x", "y"], "logprobs": 1}),
    }
    for route, (kind, body) in cases.items():
        answer = httpx.post(f"{scripted.base_url}{route}", json={**body, **usage})
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n")]
        assert events[-2:] == ["[DONE]", ""]
        for event in events[:-2]:
            fields = json.loads(event)
            assert fields["usage"] is None or fields["choices"] == []
            for choice in fields["choices"]:
                assert choice["finish_reason"] in (None, "stop", "length")
            kind.model_validate(fields | {"choices": [c | {"finish_reason": "stop"} for c in fields["choices"]]})

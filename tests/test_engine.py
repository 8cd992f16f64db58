"""The engine against a model without a cache, and against itself: alone, in company, in any order."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer, first_generation, gpt2, random_model, scripted_model

from raychat.chat.template import completion_parts
from raychat.engine.engine import Engine
from raychat.engine.request import Completion, Event
from raychat.engine.sampling import SamplingParams
from raychat.tokenizer import Tokenizer

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
NO_STOP = ()  # a random model would stop at random


MODELS = {
    "current": random_model(sequence_len=300),
    "first": first_generation(sequence_len=300),
    "gpt2": gpt2(sequence_len=300),
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_model()


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[TOKENIZER.bos] + [draw.randrange(256) for _ in range(n - 1)] for n in lengths]


@torch.inference_mode()
def recomputed(model: torch.nn.Module, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Return the logits before each of `ids`, from one pass over everything, without a cache."""
    return model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]


def run(engine: Engine, ids: list[int]) -> dict[int, list[Event]]:
    events: dict[int, list[Event]] = {i: [] for i in ids}
    while engine.busy:
        for event in engine.step():
            events[event.id].append(event)
    return events


def test_cached_greedy_is_recomputed_greedy(model: torch.nn.Module) -> None:
    """Windows of 128 tokens are passed on the way; tokens are the argmax of a model without a cache."""
    prompts = prompts_of([1, 2, 17, 60, 120])
    params = SamplingParams(temperature=0, max_new_tokens=100, stop_ids=NO_STOP)
    for prompt, done in zip(prompts, Engine(model, TOKENIZER).generate(prompts, params), strict=True):
        logits = recomputed(model, prompt, done.ids)
        assert done.ids == logits.argmax(-1).tolist()


def test_a_model_of_texts_ends_where_its_tokenizer_says() -> None:
    """GPT-2, and a tokenizer without the special tokens of conversations."""
    tokenizer = Tokenizer([*TOKENIZER.tokens, *(bytes([i, i]) for i in range(8))], ["<|endoftext|>"])
    engine, prompts = Engine(MODELS["gpt2"], tokenizer), prompts_of([1, 7, 40])
    for prompt, done in zip(prompts, engine.generate(prompts, SamplingParams(0.0, max_new_tokens=60)), strict=True):
        assert done.ids == recomputed(MODELS["gpt2"], prompt, done.ids).argmax(-1).tolist()
        assert tokenizer.bos not in done.ids[:-1]


def test_logprobs_are_the_models_own_whatever_the_sampling(model: torch.nn.Module) -> None:
    params = SamplingParams(
        temperature=0.5, top_k=7, top_p=0.8, max_new_tokens=40, seed=1, stop_ids=NO_STOP, logprobs=0
    )
    (prompt,) = prompts_of([20])
    (done,) = Engine(model, TOKENIZER).generate([prompt], params)
    logits = recomputed(model, prompt, done.ids).log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(logits, done.ids, strict=True)]
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)  # fp32 sums in another order
    assert done.sampled == [True] * 40


@pytest.mark.parametrize("params", [SamplingParams(1e-310), SamplingParams(top_k=1, top_p=5e-324)])
def test_engine_survives_extreme_sampling(model: torch.nn.Module, params: SamplingParams) -> None:
    greedy = SamplingParams(temperature=0, max_new_tokens=20, stop_ids=NO_STOP)
    extreme = replace(params, max_new_tokens=20, stop_ids=NO_STOP)
    a, b = Engine(model, TOKENIZER).generate(prompts_of([5]) * 2, [greedy, extreme])
    assert a.ids == b.ids


@pytest.mark.parametrize("logprobs", [None, 0])
def test_broken_weights_are_an_error_and_leave_an_idle_engine(logprobs: int | None) -> None:
    model = random_model()
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    engine = Engine(model, TOKENIZER)
    with pytest.raises(FloatingPointError, match="logits"):
        engine.generate(prompts_of([3, 4]), SamplingParams(logprobs=logprobs))
    assert not engine.busy


def mixed_params(num: int) -> list[SamplingParams]:
    choices = [(0.0, None, None), (1.0, None, None), (0.7, 5, None), (1.3, None, 0.9), (1.0, 20, 0.7)]
    return [
        SamplingParams(*choices[i % 5], max_new_tokens=10 + 3 * i, seed=i, stop_ids=NO_STOP, logprobs=0)
        for i in range(num)
    ]


def assert_same(a: Completion, b: Completion) -> None:
    assert a.ids == b.ids
    assert (a.sampled, a.finish) == (b.sampled, b.finish)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)  # fp32 sums in another order


@pytest.mark.parametrize("max_sequences", [1, 3, 16])
def test_batched_is_one_by_one(model: torch.nn.Module, max_sequences: int) -> None:
    prompts, params = prompts_of([3, 30, 7, 90, 1, 12, 50]), mixed_params(7)
    together = Engine(model, TOKENIZER, max_sequences=max_sequences).generate(prompts, params)
    alone = [Engine(model, TOKENIZER).generate([p], [q])[0] for p, q in zip(prompts, params, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)


def test_requests_enter_and_leave_at_any_step(model: torch.nn.Module) -> None:
    prompts, params = prompts_of([3, 30, 7, 90, 1]), mixed_params(5)
    alone = [Engine(model, TOKENIZER).generate([p], [q])[0] for p, q in zip(prompts, params, strict=True)]
    engine, got = Engine(model, TOKENIZER, max_sequences=3), {}
    for prompt, q in zip(prompts, params, strict=True):
        got[engine.add(prompt, q)] = []
        for _ in range(4):
            for event in engine.step():
                got[event.id].append(event.token)
    for id, events in run(engine, list(got)).items():
        got[id] += [event.token for event in events]
    assert list(got.values()) == [done.ids for done in alone]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_schedule_gives_each_request_its_own_tokens(data: st.DataObject) -> None:
    """Any sizes of engine, cache and step, requests that share beginnings, enter late and are cancelled.

    Greedy tokens are those of the model without a cache, and the others those of the request alone.
    """
    model = MODELS[data.draw(st.sampled_from(sorted(MODELS)), label="model")]
    engine = Engine(
        model,
        TOKENIZER,
        max_sequences=data.draw(st.integers(1, 6), label="max_sequences"),
        cache_tokens=data.draw(st.integers(300, 1200), label="cache_tokens"),
        step_tokens=data.draw(st.integers(1, 200), label="step_tokens"),
    )
    bases = prompts_of([250, 250], seed=data.draw(st.integers(0, 3)))
    wanted: dict[int, tuple[list[int], SamplingParams]] = {}
    got: dict[int, list[int]] = {}

    def step() -> None:
        for event in engine.step():
            got[event.id].append(event.token)

    for i in range(data.draw(st.integers(1, 8), label="requests")):
        base = data.draw(st.sampled_from(bases))
        own = prompts_of([data.draw(st.integers(1, 40))], seed=data.draw(st.integers(0, 2)))[0]
        prompt = base[: data.draw(st.integers(0, 250), label="shared")] + own
        params = SamplingParams(
            temperature=data.draw(st.sampled_from([0.0, 0.0, 1.0])),
            top_k=data.draw(st.sampled_from([None, 5])),
            max_new_tokens=data.draw(st.integers(1, 40)),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.0, 1.3])),
            seed=i,
            stop_ids=NO_STOP,
        )
        id = engine.add(prompt, params)
        wanted[id], got[id] = (prompt, params), []
        for _ in range(data.draw(st.integers(0, 12), label="steps")):
            step()
        if data.draw(st.integers(0, 5)) == 0:
            cancelled = data.draw(st.sampled_from(sorted(wanted)))
            engine.cancel(cancelled)
            del wanted[cancelled]
    while engine.busy:
        step()
    for id, (prompt, params) in wanted.items():
        length = min(params.max_new_tokens, engine.context + 1 - len(prompt))
        assert len(got[id]) == length
        if params.temperature == 0 and params.repetition_penalty == 1:
            logits = recomputed(model, prompt, got[id])
            chosen = logits[range(length), got[id]]
            assert (logits.amax(-1) - chosen).max() < 1e-3  # fp32 sums in another order
        else:
            assert got[id] == Engine(model, TOKENIZER).generate([prompt], params)[0].ids


def test_preemption_when_sequences_outgrow_the_cache() -> None:
    """The cache has room for three slots of 256 tokens or two of 300: the newest request begins anew, unchanged."""
    model, prompts = MODELS["current"], prompts_of([100, 100, 100])
    params = SamplingParams(max_new_tokens=180, seed=3, stop_ids=NO_STOP, logprobs=0)
    engine = Engine(model, TOKENIZER, max_sequences=3, cache_tokens=3 * 256)
    together = engine.generate(prompts, params)
    assert engine.stats().preemptions == 1
    for i, (prompt, done) in enumerate(zip(prompts, together, strict=True)):
        assert_same(done, Engine(model, TOKENIZER).generate([prompt], replace(params, seed=3 + i))[0])


def test_cancelled_request_leaves_the_others_alone() -> None:
    """The slots have been lengthened, and are moved when a request in the middle leaves."""
    model, prompts = MODELS["current"], prompts_of([260, 20, 30])
    params = SamplingParams(max_new_tokens=30, seed=3, stop_ids=NO_STOP)
    engine = Engine(model, TOKENIZER)
    ids = [engine.add(prompt, params) for prompt in prompts]
    got = [event for _ in range(3) for event in engine.step()]
    engine.cancel(ids[1])
    events = run(engine, ids)
    assert not events[ids[1]]
    for id, prompt in zip(ids[::2], prompts[::2], strict=True):
        tokens = [event.token for event in [*got, *events[id]] if event.id == id]
        assert tokens == Engine(model, TOKENIZER).generate([prompt], params)[0].ids


@pytest.mark.parametrize("chosen", range(4))
def test_longer_request_continues_a_prefix_from_any_slot(chosen: int) -> None:
    """The cache has room for four slots of 256 tokens or three of 300, one of which held the prefix."""
    model, prompts = MODELS["current"], prompts_of([60, 70, 80, 90])
    params = SamplingParams(temperature=0, max_new_tokens=2, stop_ids=NO_STOP)
    engine = Engine(model, TOKENIZER, max_sequences=3, cache_tokens=4 * 256)
    for prompt in prompts:
        engine.generate([prompt], params)
    prompt = prompts[chosen] + prompts_of([200])[0]
    (done,) = engine.generate([prompt], params)
    assert done.ids == Engine(model, TOKENIZER).generate([prompt], params)[0].ids


def test_second_turn_reads_only_what_is_new(model: torch.nn.Module) -> None:
    engine, (prompt, more) = Engine(model, TOKENIZER), prompts_of([50, 10])
    params = SamplingParams(temperature=0, max_new_tokens=20, stop_ids=NO_STOP)
    (first,) = engine.generate([prompt], params)
    turn = prompt + first.ids + more
    (second,) = engine.generate([turn], params)
    assert engine.stats().reused_tokens == 50 + 19  # the last token of an answer is not read
    assert second.ids == Engine(model, TOKENIZER).generate([turn], params)[0].ids


def test_decoding_goes_on_beside_a_long_prompt(model: torch.nn.Module) -> None:
    """A prompt is read in chunks of a step's tokens, and every step also gives the running request its token."""
    engine, (short, long) = Engine(model, TOKENIZER, max_sequences=2, step_tokens=20), prompts_of([5, 130])
    params = SamplingParams(temperature=0, max_new_tokens=30, stop_ids=NO_STOP)
    first = engine.add(short, params)
    engine.step()
    second = engine.add(long, params)
    events = [[event.id for event in engine.step()] for _ in range(8)]
    assert events == [[first]] * 6 + [[first, second]] * 2  # 19 tokens of the prompt a step


def test_prompt_logprobs_and_alternatives_are_the_models(model: torch.nn.Module) -> None:
    (prompt,) = prompts_of([70])
    engine = Engine(model, TOKENIZER, step_tokens=32)
    params = SamplingParams(temperature=0, max_new_tokens=3, logprobs=4, prompt_logprobs=2, stop_ids=NO_STOP)
    for _ in range(2):  # the second time the cache holds the prompt
        id = engine.add(prompt, params)
        events = run(engine, [id])[id]
        logprobs = recomputed(model, prompt[:1], prompt[1:] + [e.token for e in events]).log_softmax(-1)
        scores = [(e.logprob, e.top) for e in events]
        assert events[0].prompt is not None
        assert [e.prompt for e in events[1:]] == [None, None]
        tokens = prompt[1:] + [e.token for e in events]
        for row, token, (logprob, top) in zip(logprobs, tokens, [*events[0].prompt, *scores], strict=True):
            assert abs(logprob - row[token]) < 1e-3  # fp32 sums in another order
            np.testing.assert_allclose([p for _, p in top], row.topk(len(top)).values, atol=1e-3)
        assert [len(top) for _, top in (*events[0].prompt, *scores)] == [2] * 69 + [4] * 3


def test_biases_and_penalties_steer_one_request(model: torch.nn.Module) -> None:
    prompts, params = prompts_of([9, 9]), SamplingParams(temperature=0, max_new_tokens=12, stop_ids=NO_STOP)
    biased = replace(params, logit_bias=((77, 100.0),))
    plain, always = Engine(model, TOKENIZER).generate(prompts, [params, biased])
    assert always.ids == [77] * 12
    assert plain.ids == Engine(model, TOKENIZER).generate(prompts[:1], params)[0].ids
    never_twice = replace(params, presence_penalty=1e6)
    assert len(set(Engine(model, TOKENIZER).generate(prompts[:1], never_twice)[0].ids)) == 12


def test_seed_gives_same_tokens_and_none_new_ones(model: torch.nn.Module) -> None:
    engine, (prompt,) = Engine(model, TOKENIZER), prompts_of([5])
    seeded = SamplingParams(seed=7, max_new_tokens=30, stop_ids=NO_STOP)
    assert_same(engine.generate([prompt], seeded)[0], engine.generate([prompt], seeded)[0])
    unseeded = SamplingParams(max_new_tokens=30, stop_ids=NO_STOP)
    assert engine.generate([prompt], unseeded)[0].ids != engine.generate([prompt], unseeded)[0].ids


def test_samples_of_one_prompt_are_read_once(model: torch.nn.Module) -> None:
    engine, (prompt,) = Engine(model, TOKENIZER, max_sequences=4), prompts_of([40])
    samples = engine.generate([prompt] * 10, SamplingParams(max_new_tokens=20, seed=100, stop_ids=NO_STOP))
    stats = engine.stats()
    assert stats.prompt_tokens == 10 * 40
    assert stats.reused_tokens == 9 * 39  # the last token of a prompt is read for its logits
    assert len({tuple(s.ids) for s in samples}) == 10
    for i, done in enumerate(samples):
        params = SamplingParams(max_new_tokens=20, seed=100 + i, stop_ids=NO_STOP)
        assert_same(done, Engine(model, TOKENIZER).generate([prompt], params)[0])


def test_cancel_frees_the_slot_and_disturbs_nobody(model: torch.nn.Module) -> None:
    prompts, params = prompts_of([9, 8, 7]), mixed_params(3)
    alone = [Engine(model, TOKENIZER).generate([p], [q])[0].ids for p, q in zip(prompts, params, strict=True)]
    engine = Engine(model, TOKENIZER, max_sequences=2)
    ids = [engine.add(p, q) for p, q in zip(prompts, params, strict=True)]
    waiting = engine.add(prompts[0], params[0])
    first = [event for _ in range(3) for event in engine.step()]
    engine.cancel(ids[0])
    engine.cancel(waiting)
    engine.cancel(12345)  # long gone
    rest = run(engine, ids)
    assert rest[ids[0]] == []
    tokens = [e.token for e in first if e.id == ids[1]] + [e.token for e in rest[ids[1]]]
    assert tokens == alone[1]
    assert [e.token for e in rest[ids[2]]] == alone[2]


def test_stops_at_assistant_end_and_bos() -> None:
    for end in ("<|assistant_end|>", "<|bos|>"):
        engine = Engine(scripted_model([[*b"abc", SPECIAL[end], *b"x"]]), TOKENIZER)
        (done,) = engine.generate([[*b"a"]], SamplingParams(temperature=0))
        assert done.ids == [*b"bc", SPECIAL[end]]
        assert done.finish == "stop"


def test_stop_ids_replace_the_defaults() -> None:
    engine = Engine(scripted_model([[*b"ab", SPECIAL["<|assistant_end|>"], *b"xyz"]]), TOKENIZER)
    (done,) = engine.generate([[*b"a"]], SamplingParams(temperature=0, stop_ids=(ord("y"),)))
    assert bytes(done.ids[2:]) == b"xy"


def test_max_new_tokens(model: torch.nn.Module) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=5, stop_ids=NO_STOP)
    (done,) = Engine(model, TOKENIZER).generate(prompts_of([4]), params)
    assert (len(done.ids), done.finish) == (5, "length")


@pytest.mark.parametrize("length", [150, 159, 160])
def test_full_context_ends_with_length(model: torch.nn.Module, length: int) -> None:
    """A context of T tokens predicts one more than it holds, as in training."""
    params = SamplingParams(temperature=0, max_new_tokens=99, stop_ids=NO_STOP)
    (done,) = Engine(model, TOKENIZER).generate(prompts_of([length]), params)
    assert (length + len(done.ids), done.finish) == (160 + 1, "length")


@pytest.mark.parametrize(
    "prompt, message", [([0] * 161, "161 tokens; expected 1 to 160"), ([], "0 tokens"), ([265], "265")]
)
def test_bad_prompt_is_refused_at_the_door(model: torch.nn.Module, prompt: list[int], message: str) -> None:
    engine = Engine(model, TOKENIZER)
    with pytest.raises(ValueError, match=message):
        engine.generate([[1], prompt])
    assert not engine.busy


def test_foreign_tokenizer_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="266 tokens, expected 265"):
        Engine(model, type(TOKENIZER)([*TOKENIZER.tokens, b"ab"]))


CALL = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
ANSWER = [SPECIAL["<|output_start|>"], *b"42", SPECIAL["<|output_end|>"]]
ENDING = [*b"!", SPECIAL["<|assistant_end|>"]]


def test_tool_answer_is_forced() -> None:
    model = scripted_model([[ord("a"), *CALL, ord("?")], [ANSWER[-1], *ENDING]])  # by itself it would say "?"
    (done,) = Engine(model, TOKENIZER).generate([[ord("a")]], SamplingParams(temperature=0, logprobs=0))
    assert done.ids == [*CALL, *ANSWER, *ENDING]
    assert done.sampled == [True] * len(CALL) + [False] * len(ANSWER) + [True] * len(ENDING)
    assert done.finish == "stop"
    logits = recomputed(model, [ord("a")], done.ids).log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(logits, done.ids, strict=True)]
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)


def test_tool_without_answer_forces_nothing() -> None:
    model = scripted_model([[ord("a"), *CALL, *ENDING]])
    calls: list[str] = []
    (done,) = Engine(model, TOKENIZER, tool=calls.append).generate([[ord("a")]], SamplingParams(temperature=0))
    assert done.ids == [*CALL, *ENDING]
    assert calls == ["6*7"]


def test_tool_gets_the_call_that_the_text_shows() -> None:
    stray = [*CALL[:2], SPECIAL["<|output_end|>"], *CALL[2:]]
    model = scripted_model([[ord("a"), *stray, *ENDING]])
    calls: list[str] = []
    (done,) = Engine(model, TOKENIZER, tool=calls.append).generate([[ord("a")]], SamplingParams(temperature=0))
    assert calls == ["6*7"]
    assert completion_parts(TOKENIZER, done.ids)[0] == {"type": "python", "text": "6*7"}


def test_tool_runs_in_one_request_among_others() -> None:
    model = scripted_model([[ord("a"), *CALL, ord("?")], [ANSWER[-1], *ENDING], [*b"xyz", ENDING[-1]]])
    params = SamplingParams(temperature=0)
    tool, plain = Engine(model, TOKENIZER).generate([[ord("a")], [ord("x")]], params)
    assert tool.ids == [*CALL, *ANSWER, *ENDING]
    assert plain.ids == [*b"yz", ENDING[-1]]


def test_forced_token_is_no_stop_token_and_counts_as_new() -> None:
    model = scripted_model([[ord("a"), *CALL, ord("?")], [ANSWER[-1], *ENDING]])
    params = SamplingParams(temperature=0, stop_ids=(ord("4"),), max_new_tokens=len(CALL) + 3)
    (done,) = Engine(model, TOKENIZER).generate([[ord("a")]], params)
    assert done.ids == [*CALL, *ANSWER[:3]]
    assert done.finish == "length"


def test_load_weights_in_place() -> None:
    prompts = prompts_of([10, 20])
    params = SamplingParams(temperature=0, max_new_tokens=15, stop_ids=NO_STOP)
    other = random_model(seed=1)
    engine = Engine(random_model(seed=0), TOKENIZER)
    before = engine.generate(prompts, params)
    engine.load_weights(other.state_dict())
    after = engine.generate(prompts[::-1], params)[::-1]  # the first one was the last prompt read with the old weights
    for a, b in zip(after, Engine(other, TOKENIZER).generate(prompts, params), strict=True):
        assert_same(a, b)
    assert [c.ids for c in after] != [c.ids for c in before]


def test_foreign_weights_are_refused(model: torch.nn.Module) -> None:
    weights = dict(model.state_dict())
    with pytest.raises(ValueError, match="lm_head"):
        Engine(model, TOKENIZER).load_weights({**weights, "lm_head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="extra"):
        Engine(model, TOKENIZER).load_weights({**weights, "extra": torch.zeros(1)})

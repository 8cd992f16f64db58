"""Decode steps that are recorded and replayed, without a GPU: the packed pass with its kernel written out, and a
recording that runs the same function again on the same tensors."""

from collections.abc import Callable

import pytest
import torch
from tiny import byte_tokenizer, random_model, varlen_attn

from raychat.engine import graphs
from raychat.engine.engine import Engine
from raychat.engine.request import Completion
from raychat.engine.sampling import SamplingParams
from raychat.model.cache import KVCache

LENGTHS = (5, 300, 300, 300, 8)  # of the prompts; windows of 256 drop what is too old while three are left


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let engines record their decode steps; return the numbers of rows that have been recorded, in order."""
    rows: list[int] = []

    def record(compute: Callable[[], graphs.Outputs]) -> tuple[graphs.Replay, graphs.Outputs]:
        outputs = compute()
        rows.append(len(outputs[0]))

        def replay() -> None:
            for old, new in zip(outputs, compute(), strict=True):
                old.copy_(new)

        for output in outputs:
            output.zero_()  # a recording computes nothing
        return replay, outputs

    monkeypatch.setattr(graphs, "cuda_graph", record)
    monkeypatch.setattr(KVCache, "packed", True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return rows


def engine(model: torch.nn.Module) -> Engine:
    return Engine(model, byte_tokenizer(), max_sequences=len(LENGTHS))


def completions(engine: Engine, params: list[SamplingParams] | SamplingParams) -> list[Completion]:
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 265, (length,), generator=draw).tolist() for length in LENGTHS]
    return engine.generate(prompts, params)


def test_replayed_steps_give_the_same_tokens(recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of every kind end one after the other, so steps of all numbers of rows run, and slots grow."""
    import test_engine  # here: it needs hypothesis, and the test on a GPU runs without

    model = random_model(sequence_len=600)
    params = [
        SamplingParams(0.8, max_new_tokens=n, seed=i, stop_ids=(), logprobs=2 if i == 1 else None, **kind)
        for i, (n, kind) in enumerate(
            zip((20, 280, 240, 220, 40), ({}, {}, {"top_k": 5}, {"presence_penalty": 2.0}, {"top_p": 0.5}), strict=True)
        )
    ]
    replayed = completions(engine(model), params)
    assert sorted(recorded) == [1, 2, 4, 4, 5]  # once more for longer slots
    monkeypatch.undo()
    for got, expected in zip(replayed, completions(engine(model), params), strict=True):
        test_engine.assert_same(got, expected)


def test_a_step_is_recorded_once_while_nothing_changes(recorded: list[int]) -> None:
    greedy = SamplingParams(0, max_new_tokens=30, stop_ids=())
    replaying = engine(random_model())
    replaying.generate([[1], [2], [3]], greedy)
    assert recorded == [4]


def test_new_weights_are_recorded_anew(recorded: list[int]) -> None:
    greedy = SamplingParams(0, max_new_tokens=30, stop_ids=())
    replaying, other = engine(random_model()), random_model(seed=1)
    replaying.generate([[1, 2, 3]], greedy)
    replaying.load_weights(other.state_dict())
    (got,) = replaying.generate([[1, 2, 3]], greedy)
    assert recorded == [1, 1]
    assert got.ids == engine(other).generate([[1, 2, 3]], greedy)[0].ids


def test_forced_tokens_are_replayed(recorded: list[int]) -> None:
    import test_engine

    test_engine.test_tool_answer_is_forced()
    assert recorded


@pytest.mark.gpu
def test_cuda_graphs_give_the_tokens_of_plain_steps() -> None:
    model = random_model(sequence_len=600).place(torch.device("cuda"), torch.bfloat16)
    greedy = SamplingParams(0, max_new_tokens=60, stop_ids=(), logprobs=0)
    prompts = [[5, 6, 7], list(range(250)), [9] * 40, [1]]
    replaying, plain = engine(model), engine(model)
    plain._graphs = None
    for got, expected in zip(replaying.generate(prompts, greedy), plain.generate(prompts, greedy), strict=True):
        torch.testing.assert_close(got.logprobs[:5], expected.logprobs[:5], rtol=0, atol=0.05)  # bf16
        assert got.ids[:5] == expected.ids[:5]

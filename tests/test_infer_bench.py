"""The inference benchmark: what it counts, with a small checkpoint and with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy
from tiny import byte_tokenizer, random_model

from jobs.infer_bench import Args, Round, _serve, _summary, run
from raychat.checkpoint import save_checkpoint
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams

SMALL = {"batch_sizes": (1, 3), "prompt_tokens": 8, "new_tokens": 4, "rounds": 1}


@pytest.fixture
def checkpoint(raychat_home: Path) -> None:
    model = random_model()
    save_checkpoint(str(raychat_home / "runs" / "r" / "sft"), model, None, byte_tokenizer(), toy.meta(3, model))


def test_figures_of_a_checkpoint_agree_with_each_other(checkpoint: None, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(Args(**SMALL))
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == result
    assert len(lines) == 1 + 2 + 1  # header, batch sizes, JSON
    assert result["model"] == "r-sft"
    assert result["batches"].keys() == {"1", "3"}
    for batch, figures in result["batches"].items():
        assert all(figure > 0 for figure in figures.values())
        assert figures["tok_s"] == pytest.approx(int(batch) / figures["tpot_ms"] * 1000, rel=0.01)
        fraction = figures["tok_s"] / figures["limit_tok_s"]
        assert figures["fraction_of_limit"] == pytest.approx(fraction, rel=0.01, abs=1e-4)  # they are rounded


def test_depth_measures_random_weights(raychat_home: Path) -> None:
    result = run(Args(depth=1, batch_sizes=(2,), prompt_tokens=4, new_tokens=2, rounds=1))
    assert result["model"] == "d1, random"
    assert result["batches"].keys() == {"2"}


def test_all_requests_decode_together_however_long_their_prompts_take() -> None:
    engine = Engine(random_model(), byte_tokenizer(), max_sequences=8, step_tokens=16)
    prompts = np.random.default_rng(0).integers(0, 256, (8, 40))  # 20 steps and more, against 4 new tokens
    first_s, step_s = _serve(engine, prompts, SamplingParams(max_new_tokens=100, stop_ids=(), seed=0), new_tokens=4)
    assert len(first_s) == 8
    assert min(first_s) < max(first_s)  # those that were read first have begun first
    assert step_s > 0
    assert not engine.busy
    assert engine.stats().generated_tokens > 8 * 4


def test_request_that_ends_too_early_is_an_error() -> None:
    engine = Engine(random_model(), byte_tokenizer(), max_sequences=4)
    prompts = np.random.default_rng(0).integers(0, 256, (4, 10))
    with pytest.raises(ValueError, match="take fewer requests"):
        _serve(engine, prompts, SamplingParams(max_new_tokens=3, stop_ids=()), new_tokens=9)


def test_summary_takes_medians_and_the_share_of_the_best_round() -> None:
    rounds = [Round([0.1, 0.3], 0.02, 0.01), Round([0.2, 0.4], 0.05, 0.02), Round([1.0, 2.0], 0.04, 0.02)]
    assert _summary(rounds, prompt_tokens=10) == {
        "ttft_ms": 300.0,
        "prompt_tok_s": 50.0,  # two prompts in 0.4 s
        "tpot_ms": 40.0,
        "tok_s": 50.0,
        "limit_tok_s": 200.0,
        "fraction_of_limit": 0.5,
    }


def test_context_must_hold_prompt_and_answer(checkpoint: None) -> None:
    with pytest.raises(ValueError, match="at most 160 in all"):
        run(Args(prompt_tokens=150, new_tokens=20))


def test_depth_and_run_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        run(Args(depth=1, run="tiny"))

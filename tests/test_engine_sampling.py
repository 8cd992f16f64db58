"""The draw of a token against its definition, over every parameter that is accepted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from raychat.engine.sampling import SamplingParams, sample


def kept_reference(probs: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The definition, token by token: which probabilities stay after top-k, then top-p, renormalised."""
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[:top_k]
    total, kept, mass = sum(probs[i] for i in order), [], 0.0
    for i in order:
        if top_p is not None and kept and mass >= top_p * total:
            break
        kept.append(i)
        mass += probs[i]
    out = np.zeros_like(probs)
    out[kept] = probs[kept] / mass
    return out


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 1.0])
def test_sample_has_the_distribution_it_should(temperature: float, top_k: int | None, top_p: float | None) -> None:
    num = 20_000
    row = torch.randn(37, generator=torch.Generator().manual_seed(3)) * 2
    uniforms = (torch.arange(num, dtype=torch.float64) + 0.5) / num  # stratified: counts are exact to one per bin edge
    tokens = sample(row.expand(num, -1), uniforms, temperature=temperature, top_k=top_k, top_p=top_p)
    got = np.bincount(tokens.numpy(), minlength=37) / num
    probs = torch.softmax(row.double() / temperature, -1).numpy()
    np.testing.assert_allclose(got, kept_reference(probs, top_k, top_p), atol=2 / num)


def test_sample_at_the_edges() -> None:
    logits = torch.tensor([[0.0, 5.0, -torch.inf, 1.0]])
    edges = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens = sample(logits.expand(2, -1), edges, temperature=1.0)
    assert tokens.tolist() == [0, 3]
    ties = sample(torch.zeros(1000, 8), torch.linspace(0, 0.999, 1000, dtype=torch.float64), top_k=3)
    assert len(set(ties.tolist())) == 3
    assert sample(logits, torch.zeros(1, dtype=torch.float64), temperature=0).tolist() == [1]


BELOW_ONE = math.nextafter(1.0, 0.0)
logit_rows = st.lists(st.floats(width=32, allow_nan=False, max_value=2.0**127) | st.just(0.0), min_size=1, max_size=9)


@given(
    logit_rows.filter(lambda row: max(row) > -math.inf),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, 0.5, BELOW_ONE]),
    st.floats(min_value=0, allow_infinity=False) | st.sampled_from([5e-324, 1e-310, 1e-40, 1.0, 1e308]),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0, 1, exclude_min=True) | st.sampled_from([5e-324, BELOW_ONE, 1.0]),
)
@example([0.0, 1.0], 0.5, 1e-310, None, None)
@example([0.0, 0.0], 0.5, 1.0, 1, 5e-324)
@example([3e38, -3e38, -math.inf], BELOW_ONE, 5e-324, None, 5e-324)
def test_any_accepted_sampling_draws_a_possible_token(
    row: list[float], uniform: float, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    params = SamplingParams(temperature, top_k, top_p)
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    logits = torch.tensor([row])
    (token,) = sample(logits, uniforms, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p).tolist()
    assert 0 <= token < len(row)
    assert row[token] > -math.inf
    if temperature == 0:
        assert row[token] == max(row)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-50])
def test_tiny_temperature_draws_among_the_most_likely(temperature: float) -> None:
    """The limit of temperature 0 with ties: neighbouring fp32 numbers are told apart, equal ones share."""
    row = torch.tensor([1.0, 1.0 - 2**-24, 1.0, -5.0])
    uniforms = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    tokens = sample(row.expand(100, -1), uniforms, temperature=temperature)
    assert np.bincount(tokens.numpy(), minlength=4).tolist() == [50, 0, 50, 0]


@pytest.mark.parametrize("bad", [[0.0, math.nan], [-math.inf, -math.inf], [0.0, math.inf]])
@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}])
def test_broken_logits_are_an_error(bad: list[float], params: dict[str, float]) -> None:
    logits = torch.tensor([[0.0, 1.0], bad])
    with pytest.raises(FloatingPointError, match="logits"):
        sample(logits, torch.zeros(2, dtype=torch.float64), **params)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"seed": 0.5},
    ],
)
def test_bad_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)

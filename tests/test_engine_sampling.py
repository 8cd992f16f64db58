"""The draw of a token against its definition, over every parameter that is accepted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from raychat.engine.sampling import Draws, SamplingParams, penalise, sample, uniforms


def draw(logits: torch.Tensor, uniform: torch.Tensor, **params: float | None) -> torch.Tensor:
    return sample(logits, Draws.one(uniform, SamplingParams(**params)))


def kept_reference(probs: np.ndarray, top_k: int | None, top_p: float | None, min_p: float | None) -> np.ndarray:
    """The definition, token by token: which probabilities stay after top-k, top-p, min-p, renormalised."""
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[:top_k]
    total, kept, mass = sum(probs[i] for i in order), [], 0.0
    for i in order:
        if top_p is not None and kept and mass >= top_p * total:
            break
        kept.append(i)
        mass += probs[i]
    kept = [i for i in kept if probs[i] >= (min_p or 0) * probs.max()]
    out = np.zeros_like(probs)
    out[kept] = probs[kept] / probs[kept].sum()
    return out


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.2])
def test_sample_has_the_distribution_it_should(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    num = 20_000
    row = torch.randn(37, generator=torch.Generator().manual_seed(3)) * 2
    uniform = (torch.arange(num, dtype=torch.float64) + 0.5) / num  # stratified: counts are exact to one per bin edge
    tokens = draw(row.expand(num, -1), uniform, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = np.bincount(tokens.numpy(), minlength=37) / num
    probs = torch.softmax(row.double() / temperature, -1).numpy()
    np.testing.assert_allclose(got, kept_reference(probs, top_k, top_p, min_p), atol=2 / num)


def test_sample_at_the_edges() -> None:
    logits = torch.tensor([[0.0, 5.0, -torch.inf, 1.0]])
    edges = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits.expand(2, -1), edges).tolist() == [0, 3]
    spread = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    ties = draw(torch.zeros(1000, 8), spread, top_k=3)
    assert len(set(ties.tolist())) == 3
    ties = draw(torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0]).expand(1000, -1), spread, top_k=3)
    assert sorted(set(ties.tolist())) == [0, 1, 2]  # of equal ones the first
    assert draw(logits, torch.zeros(1, dtype=torch.float64), temperature=0).tolist() == [1]


BELOW_ONE = math.nextafter(1.0, 0.0)
logit_rows = st.lists(st.floats(width=32, allow_nan=False, max_value=2.0**127) | st.just(0.0), min_size=1, max_size=9)


@given(
    logit_rows.filter(lambda row: max(row) > -math.inf),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, 0.5, BELOW_ONE]),
    st.floats(min_value=0, allow_infinity=False) | st.sampled_from([5e-324, 1e-310, 1e-40, 1.0, 1e308]),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0, 1, exclude_min=True) | st.sampled_from([5e-324, BELOW_ONE, 1.0]),
    st.none() | st.floats(0, 1) | st.sampled_from([0.0, 5e-324, BELOW_ONE, 1.0]),
)
@example([0.0, 1.0], 0.5, 1e-310, None, None, None)
@example([0.0, 0.0], 0.5, 1.0, 1, 5e-324, None)
@example([3e38, -3e38, -math.inf], BELOW_ONE, 5e-324, None, 5e-324, 1.0)
def test_any_accepted_sampling_draws_a_possible_token(
    row: list[float],
    uniform: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    (token,) = draw(torch.tensor([row]), torch.tensor([uniform], dtype=torch.float64), **params).tolist()
    assert 0 <= token < len(row)
    assert row[token] > -math.inf
    if temperature == 0:
        assert row[token] == max(row)


changes = st.floats(-1e6, 1e6) | st.sampled_from([-1e6, 0.0, 1e6])
places = st.lists(st.integers(0, 8), max_size=5)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.just(-math.inf), min_size=9, max_size=9),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, BELOW_ONE]),
    st.sampled_from([0.0, 1e-310, 1.0, 1e308]),
    st.floats(1e-6, 1e6) | st.sampled_from([1e-6, 1.0, 1e6]),
    changes,
    changes,
    st.lists(st.tuples(st.integers(0, 8), changes), max_size=5),
    places,
    places,
)
def test_any_accepted_change_of_logits_leaves_a_possible_token(
    row: list[float],
    uniform: float,
    temperature: float,
    repetition: float,
    frequency: float,
    presence: float,
    biases: list[tuple[int, float]],
    prompt: list[int],
    generated: list[int],
) -> None:
    """Nine tokens; the largest logits leave room for the largest penalty."""
    assume(max(row) > -math.inf)
    penalties = {"repetition_penalty": repetition, "frequency_penalty": frequency, "presence_penalty": presence}
    params = SamplingParams(temperature=temperature, logit_bias=tuple(biases), **penalties)
    logits = torch.tensor(row)
    penalise(logits, params, torch.tensor(prompt, dtype=torch.int64), torch.tensor(generated, dtype=torch.int64))
    token = int(sample(logits[None], Draws.one(torch.tensor([uniform], dtype=torch.float64), params)))
    assert 0 <= token < len(row)
    assert row[token] > -math.inf
    if temperature == 0:
        assert logits[token] == logits.max()


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-50])
def test_tiny_temperature_draws_among_the_most_likely(temperature: float) -> None:
    """The limit of temperature 0 with ties: neighbouring fp32 numbers are told apart, equal ones share."""
    row = torch.tensor([1.0, 1.0 - 2**-24, 1.0, -5.0])
    uniform = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    tokens = draw(row.expand(100, -1), uniform, temperature=temperature)
    assert np.bincount(tokens.numpy(), minlength=4).tolist() == [50, 0, 50, 0]


@pytest.mark.parametrize("bad", [[0.0, math.nan], [-math.inf, -math.inf], [0.0, math.inf]])
@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}])
def test_broken_logits_give_no_token(bad: list[float], params: dict[str, float]) -> None:
    tokens = draw(torch.tensor([[-torch.inf, 1.0], bad]), torch.zeros(2, dtype=torch.float64), **params)
    assert tokens.tolist() == [1, -1]


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
        {"min_p": 1.5},
        {"min_p": math.nan},
        {"repetition_penalty": 0},
        {"frequency_penalty": math.inf},
        {"presence_penalty": math.nan},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, math.inf),)},
        {"logprobs": -1},
        {"prompt_logprobs": 1.5},
    ],
)
def test_bad_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """Greedy, plain, top-k, a wide nucleus and min-p in one batch, in any order, give what each gives alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5000, generator=generator)
    uniform = torch.rand(7, generator=generator, dtype=torch.float64)
    several = [{"temperature": 0}, {}, {"top_k": 3}, {"top_k": 40}, {"top_p": 0.5}, {"top_p": 0.99}, {"min_p": 0.1}]
    alone = [draw(logits[i : i + 1], uniform[i : i + 1], **several[i]).item() for i in range(7)]
    columns = [Draws.one(uniform[i : i + 1], SamplingParams(**several[i])) for i in range(7)]
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0, 5], [5, 3]):
        together = sample(logits[order], Draws(*(torch.cat(c) for c in zip(*(columns[i] for i in order), strict=True))))
        assert together.tolist() == [alone[i] for i in order]


def test_wide_nucleus_is_the_definitions() -> None:
    """More tokens than are sorted at first."""
    num, row = 4000, torch.randn(5000, generator=torch.Generator().manual_seed(1))
    uniform = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    got = set(draw(row.expand(num, -1), uniform, top_p=0.95).tolist())
    kept = kept_reference(torch.softmax(row.double(), -1).numpy(), None, 0.95, None)
    assert (kept > 0).sum() > 1024
    assert got <= set(np.flatnonzero(kept).tolist())


def test_uniforms_are_uniform_and_a_function_of_seed_and_counter() -> None:
    seeds, counters = np.arange(2000, dtype=np.uint64), np.arange(50, dtype=np.uint64)
    table = np.stack([uniforms(seeds, np.full_like(seeds, c)) for c in counters])
    assert table.min() >= 0
    assert table.max() < 1
    counts, _ = np.histogram(table, bins=20, range=(0, 1))
    assert ((counts - 5000) ** 2 / 5000).sum() < 60  # chi-squared, 19 degrees of freedom: p = 4e-6
    assert abs(np.corrcoef(table[0], table[1])[0, 1]) < 0.12  # five standard deviations
    np.testing.assert_array_equal(table[7, :5], uniforms(seeds[:5], np.full(5, 7, dtype=np.uint64)))
    assert len(np.unique(table)) == table.size


def test_penalties_are_their_definitions() -> None:
    row = torch.tensor([2.0, -2.0, 1.0, 0.5, 3.0])
    params = SamplingParams(
        logit_bias=((4, -1.5),), repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5
    )
    penalise(row, params, prompt=torch.tensor([1, 4, 4]), generated=torch.tensor([0, 0, 3]))
    expected = [2.0 / 2 - 2 * 0.25 - 0.5, -2.0 * 2, 1.0, 0.5 / 2 - 0.25 - 0.5, (3.0 - 1.5) / 2]
    torch.testing.assert_close(row, torch.tensor(expected))

"""Figures of tasks against their definitions."""

import itertools
import random

import pytest

from raychat.evals import accuracy

OUTCOMES = {"a": [1.0] * 25 + [0.0] * 15, "b": [0.0] * 9 + [1.0]}
CHANCES = {"a": 0.25, "b": 0.0}


def test_the_one_figure_is_the_mean_centred_accuracy() -> None:
    found = accuracy.figures("chatcore", OUTCOMES, CHANCES)
    assert found["chatcore"] == pytest.approx((0.5 + 0.1) / 2)
    assert found["outcomes"] == OUTCOMES
    assert accuracy.figures("core", {"a": [1, 0, 0, 0]}, CHANCES)["core"] == 0
    assert accuracy.figures("core", {"a": [1, 1]}, CHANCES)["core"] == 1


def test_intervals_hold_the_figures_and_narrow_with_more_tasks_and_items() -> None:
    found = accuracy.figures("chatcore", OUTCOMES, CHANCES)["interval"]
    assert found.keys() == {"a", "b", "chatcore"}
    low, high = found["a"]
    assert low < 0.625 < high
    more = accuracy.figures("chatcore", {"a": OUTCOMES["a"] * 100, "b": OUTCOMES["b"] * 100}, CHANCES)["interval"]
    for name in found:
        assert more[name][1] - more[name][0] < (found[name][1] - found[name][0]) / 4
    alike = accuracy.figures(
        "core", {str(i): OUTCOMES["a"] for i in range(16)}, dict.fromkeys(map(str, range(16)), 0.0)
    )
    width = {name: high - low for name, (low, high) in alike["interval"].items()}
    assert width["core"] == pytest.approx(width["3"] / 4, rel=0.2)  # the mean of 16 independent tasks


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(right: int, k: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (5 - right), k))
    assert accuracy.pass_at_k(5, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased() -> None:
    draw, share, k = random.Random(0), 0.3, 3
    estimates = [accuracy.pass_at_k(8, sum(draw.random() < share for _ in range(8)), k) for _ in range(20_000)]
    assert accuracy.mean(estimates) == pytest.approx(1 - (1 - share) ** k, abs=0.01)  # 4 standard errors


def test_pass_rates_are_of_powers_of_two_and_of_all_samples() -> None:
    assert accuracy.pass_rates(6, [0, 6]) == {"1": [0, 1], "2": [0, 1], "4": [0, 1], "6": [0, 1]}
    assert list(accuracy.pass_rates(4, [1])) == ["1", "2", "4"]
    assert accuracy.pass_rates(4, [1, 0])["2"] == [0.5, 0]

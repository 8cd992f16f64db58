import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest

from raychat.optim import schedule
from raychat.optim.schedule import Schedule

STEPS = 1000


def test_base_lr_warms_up_stays_and_warms_down_to_five_percent() -> None:
    lr = schedule.base(STEPS).lr
    assert lr(0) == pytest.approx(1 / 40)
    assert lr(19) == pytest.approx(0.5)
    assert lr(39) == lr(200) == lr(350) == 1.0
    assert lr(351) < 1.0
    assert lr(675) == pytest.approx((1 + 0.05) / 2)
    assert lr(STEPS - 1) == pytest.approx(0.05 + 0.95 / 650)
    assert lr(STEPS) == 0.05


def test_base_momentum_rises_over_400_steps_and_falls_across_the_warmdown() -> None:
    momentum = schedule.base(4000).momentum
    assert momentum(0) == 0.85
    assert momentum(200) == pytest.approx(0.91)
    assert momentum(400) == momentum(1400) == 0.97
    assert momentum(1400 + 1300) == pytest.approx(0.935)
    assert momentum(4000) == 0.90


def test_base_weight_decay_is_half_a_cosine() -> None:
    weight_decay = schedule.base(STEPS).weight_decay
    assert weight_decay(0) == 1.0
    assert weight_decay(STEPS // 4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert weight_decay(STEPS // 2) == pytest.approx(0.5)
    assert weight_decay(STEPS) == weight_decay(2 * STEPS) == pytest.approx(0.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 57, 114, 399])
def test_base_of_a_short_run_is_positive_rises_then_falls_and_has_no_jumps(steps: int) -> None:
    lr, momentum, _ = schedule.base(steps)
    values = [lr(step) for step in range(steps)]
    top = values.index(max(values))
    assert max(values) == 1.0
    assert min(values) > 0
    assert values == sorted(values[: top + 1]) + sorted(values[top + 1 :], reverse=True)
    momenta = [momentum(step) for step in range(steps)]
    assert all(0.85 <= value <= 0.97 for value in momenta)
    steepest = 0.12 / 400 + 0.07 / round(0.65 * steps)
    assert all(abs(a - b) < steepest + 1e-12 for a, b in pairwise(momenta))


def test_linear_to_zero_starts_at_the_peak_and_takes_no_step_of_zero() -> None:
    lr, momentum, _ = schedule.linear_to_zero(10, peak=0.05)
    assert [lr(step) for step in (0, 5, 9, 10)] == pytest.approx([0.05, 0.025, 0.005, 0.0])
    assert lr(9) > 0
    assert momentum(0) == momentum(9) == 0.95


def test_sft_is_constant_for_half_the_run_then_falls_to_zero() -> None:
    made = schedule.sft(STEPS)
    assert [made.lr(step) for step in (0, 499, 500, 750, STEPS)] == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.0])
    assert [made.momentum(step) for step in (0, 150, 300, 999)] == pytest.approx([0.85, 0.90, 0.95, 0.95])


@pytest.mark.parametrize("made", [schedule.linear_to_zero(10), schedule.sft(10)])
def test_later_stages_have_no_weight_decay(made: Schedule) -> None:
    assert [made.weight_decay(step) for step in (0, 5, 10)] == [0.0, 0.0, 0.0]


def test_cosine_is_nanogpts() -> None:
    """Its formulas: lr (step + 1) / (warmup + 1), then min + (lr - min) (1 + cos(pi frac)) / 2."""
    lr = schedule.cosine(2000, warmup_steps=100).lr
    assert [lr(step) for step in (0, 49, 99)] == pytest.approx([1 / 101, 50 / 101, 100 / 101])
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * (step - 100) / 1900)) / 2 for step in (100, 575, 1050, 1999)]
    assert [lr(step) for step in (100, 575, 1050, 1999)] == pytest.approx(expected)
    assert all(lr(step) > 0 for step in range(2001))


def test_cosine_of_a_run_shorter_than_its_warmup_reaches_the_peak() -> None:
    lr = schedule.cosine(10).lr
    assert lr(9) == pytest.approx(1.0)
    assert schedule.cosine(1).lr(0) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [schedule.base, schedule.linear_to_zero, schedule.sft, schedule.cosine])
def test_no_steps_is_refused(make: Callable[[int], Schedule]) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        make(0)


def test_a_warm_up_before_a_schedule_lasts_40_steps_or_half_of_the_run() -> None:
    whole = schedule.linear_to_zero(200, peak=2.0)
    warm = schedule.warmed_up(partial(schedule.linear_to_zero, peak=2.0), 200)
    assert [warm.lr(step) for step in (0, 19, 39, 40, 199)] == [
        whole.lr(0) / 40,
        whole.lr(19) / 2,
        whole.lr(39),
        whole.lr(40),
        whole.lr(199),
    ]
    assert (warm.momentum(7), warm.weight_decay(7)) == (whole.momentum(7), whole.weight_decay(7))
    assert schedule.warmed_up(schedule.linear_to_zero, 1).lr(0) == 1.0
    assert schedule.warmed_up(schedule.linear_to_zero, 4).lr(0) == 0.5

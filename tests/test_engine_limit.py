"""The limit of a decode step: the weights are read once, and multiplied by every sequence."""

import pytest
import torch
from tiny import random_model

from raychat.engine.limit import Speed, activation_dtype, best_s, measure_speed
from raychat.model.flops import matmul_weights


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_limit_is_the_slower_of_reading_and_multiplying(dtype: torch.dtype, size: int) -> None:
    model = random_model().place(torch.device("cpu"), dtype)
    weights = matmul_weights(model)
    assert activation_dtype(model) == dtype
    speed = Speed(bytes_per_s=1e9, flops_per_s=4e9)
    assert speed.step_limit_s(model, 1) == pytest.approx(weights * size / 1e9)
    assert speed.step_limit_s(model, 32) == pytest.approx(2 * 32 * weights / 4e9)


def test_speed_is_measured() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32, repeats=1)
    assert speed.bytes_per_s > 1e6
    assert speed.flops_per_s > 1e6


def test_best_leaves_the_first_call_out() -> None:
    calls: list[int] = []
    assert best_s(lambda: calls.append(1), torch.device("cpu"), repeats=3) > 0
    assert len(calls) == 4

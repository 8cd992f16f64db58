"""The limit of a decode step: it multiplies by every matrix of the model, and does nothing else."""

from collections.abc import Callable

import pytest
import torch
from tiny import first_generation, random_model
from torch.utils.flop_counter import FlopCounterMode

from raychat.engine.limit import best_s, decode_products, step_limit_s
from raychat.model.base import Model
from raychat.model.flops import matmul_weights


@pytest.mark.parametrize("make", [random_model, first_generation])
def test_products_are_two_flops_per_weight_and_sequence(make: Callable[[], Model]) -> None:
    model = make()
    multiply = decode_products(model, batch=4)
    with FlopCounterMode(display=False) as counted:
        multiply()
    assert counted.get_total_flops() == 2 * 4 * matmul_weights(model)


def test_products_have_the_dtype_of_the_activations() -> None:
    seen = set()

    class Dtypes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.mm:
                seen.update(x.dtype for x in args)
            return func(*args, **(kwargs or {}))

    multiply = decode_products(random_model().place(torch.device("cpu"), torch.bfloat16), batch=2)
    with Dtypes():
        multiply()
    assert seen == {torch.bfloat16}


def test_best_leaves_the_first_call_out() -> None:
    calls: list[int] = []
    assert best_s(lambda: calls.append(1), torch.device("cpu"), repeats=3) > 0
    assert len(calls) == 4


@pytest.mark.parametrize("numbers", [(0, 5), (1, 0)])
def test_impossible_numbers_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected whole numbers >= 1"):
        step_limit_s(random_model(), *numbers)

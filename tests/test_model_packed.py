"""Packed weights compute what the plain products do, and follow the weights."""

import copy

import pytest
import torch
from tiny import byte_tokenizer, random_model
from torch import nn
from torch.nn import functional as F

from raychat.engine.engine import Engine
from raychat.model.linear import Linear
from raychat.model.packed import PackedWeights


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize("outputs", [8, 3000])  # below and above the size from which matrices are laid out anew
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_the_plain_one(rows: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = nn.Parameter(torch.randn(outputs, 256)), torch.randn(2, rows, 256, dtype=dtype)[:1]
    with torch.inference_mode():
        got = PackedWeights([weight])(x)
        expected = F.linear(x.double(), weight.to(dtype).double())
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7  # a bf16 number has eight bits
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_joined_weights_may_read_fewer_channels() -> None:
    torch.manual_seed(0)
    weights, x = [torch.randn(5, 12), torch.randn(3, 12), torch.randn(2, 4)], torch.randn(7, 12)
    expected = torch.cat([x @ weights[0].T, x @ weights[1].T, x[:, :4] @ weights[2].T], -1)
    torch.testing.assert_close(PackedWeights(weights)(x), expected)


@pytest.mark.parametrize("outputs", [8, 3000])
def test_packed_weights_follow_a_change_in_place(outputs: int) -> None:
    weight, x = nn.Parameter(torch.ones(outputs, 256)), torch.ones(2, 256)
    packed = PackedWeights([weight])
    with torch.inference_mode():
        packed(x)
    with torch.no_grad():
        weight.mul_(2)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), torch.full((2, outputs), 512.0))


@pytest.mark.parametrize("rows", [1, 2])
def test_packed_weights_follow_the_dtype_of_the_activations(rows: int) -> None:
    packed, x = PackedWeights([torch.ones(3000, 256)]), torch.ones(rows, 256)
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            torch.testing.assert_close(packed(x.to(dtype)), torch.full((rows, 3000), 256.0, dtype=dtype))


def test_gradients_pass_by_the_packed_weights() -> None:
    layer, x = Linear(4, 3), torch.randn(2, 4)
    layer.pack()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, 4))


def test_an_engine_changes_neither_weights_nor_logits() -> None:
    model, idx = random_model(), torch.arange(40)[None]
    plain = copy.deepcopy(model)
    Engine(model, byte_tokenizer())
    with torch.inference_mode():
        torch.testing.assert_close(model(idx), plain(idx), rtol=0, atol=1e-4)
    assert model.state_dict().keys() == plain.state_dict().keys()

"""Products in 8 bits: against float64 products of the same 8-bit numbers, and beside the layers that they replace."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from tiny import on_fake_gpu, random_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from raychat.data.batches import steps_of
from raychat.data.shards import TokenRows
from raychat.dist import World
from raychat.model.gpt import GPT, GPTConfig
from raychat.optim import build_optimizer, schedule
from raychat.train.fp8 import BACKWARD, FORWARD, Fp8Linear, Fp8Product, quantized, scaled_product, use_fp8
from raychat.train.loop import train
from raychat.train.products import put_into

CPU = torch.device("cpu")


def exact(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a tensor is after its quantisation, float64."""
    x8, scale = quantized(x, dtype)
    return x8.double() * scale.double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "mantissa"), [(FORWARD, 3), (BACKWARD, 2)])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_quantised_is_the_value_to_the_formats_rounding(dtype: torch.dtype, mantissa: int, size: float) -> None:
    x = draw(64, 48, seed=0) * size
    x8, scale = quantized(x, dtype)
    assert x8.float().abs().max() == torch.finfo(dtype).max
    large = x.abs() > 0.01 * x.abs().max()  # smaller ones are subnormal in e4m3
    torch.testing.assert_close((x8.float() * scale)[large], x[large], rtol=2.0 ** -(mantissa + 1), atol=0)


def test_zeros_stay_zeros_and_what_is_not_finite_becomes_nan() -> None:
    zeros, scale = quantized(torch.zeros(4, 4), FORWARD)
    assert not (zeros.float() * scale).any()
    for bad in (torch.nan, torch.inf):
        x = torch.ones(16, 16)
        x[2, 3] = bad
        product = Fp8Product.apply(x, torch.ones(16, 16))
        assert product.isnan().any()


def test_product_is_that_of_the_8_bit_numbers() -> None:
    """The two products of the backward pass have other layouts than that of the forward pass."""
    x, grad = draw(32, 48, seed=1), draw(32, 64, seed=2)
    (x8, scale), (grad8, grad_scale) = quantized(x, FORWARD), quantized(grad, BACKWARD)
    product = scaled_product(grad8.t(), x8, grad_scale, scale, torch.float32)
    torch.testing.assert_close(product.double(), exact(grad, BACKWARD).T @ exact(x, FORWARD), rtol=1e-5, atol=1e-4)


def test_a_layer_and_its_gradients_are_products_of_quantised_tensors() -> None:
    layer, x, grad = nn.Linear(48, 64, bias=False), draw(2, 16, 48, seed=3).requires_grad_(), draw(2, 16, 64, seed=4)
    with torch.no_grad():
        layer.weight.copy_(draw(64, 48, seed=5))
    plain = nn.functional.linear(x, layer.weight).detach()
    put_into(nn.ModuleList([layer]), Fp8Linear)
    y = layer(x)
    y.backward(grad)
    assert x.grad is not None
    assert layer.weight.grad is not None
    inputs, weight, given = exact(x.detach(), FORWARD), exact(layer.weight.detach(), FORWARD), exact(grad, BACKWARD)
    # float32 sums of 64 products of values around 1
    torch.testing.assert_close(y.double(), inputs @ weight.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), given @ weight, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        layer.weight.grad.double(), given.flatten(0, 1).T @ inputs.flatten(0, 1), rtol=1e-5, atol=1e-4
    )
    assert 0 < (y - plain).norm() < 0.06 * plain.norm()  # two roundings of 2^-4 at most


def test_gradient_of_a_float32_weight_is_float32_and_of_bf16_activations_bf16() -> None:
    layer, x = nn.Linear(16, 16, bias=False), draw(16, 16, seed=0).to(torch.bfloat16).requires_grad_()
    put_into(nn.ModuleList([layer]), Fp8Linear)
    y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)  # type: ignore[union-attr]
    assert layer.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_evaluation_and_state_are_those_of_the_plain_model() -> None:
    plain, model, ids = random_model(), random_model(), torch.arange(64).view(2, 32)
    before = dict(model.named_parameters())
    put_into(model, Fp8Linear)
    assert dict(model.named_parameters()) == before  # the same objects under the same names
    assert list(model.state_dict()) == list(plain.state_dict())
    model.eval()
    assert torch.equal(model(ids), plain(ids))
    model.train()
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    assert not torch.equal(model(ids), plain(ids))


def test_all_large_layers_and_no_gate_multiply_in_fp8() -> None:
    model = random_model()
    put_into(model, Fp8Linear)
    plain = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and "Fp8" not in type(m).__name__}
    assert plain == {"smear_gate", "blocks.0.attn.ve_gate", "blocks.2.attn.ve_gate"}


def test_training_in_fp8_lowers_the_loss(tmp_path: Path) -> None:
    model = toy.model()
    put_into(model, Fp8Linear)
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.0)
    rows, losses = TokenRows(toy.token_folder(str(tmp_path))), list[float]()
    steps = steps_of(rows, rows_per_step=20, device_rows=20, start=0, world=World(0, 1), device=CPU)
    constant = schedule.Schedule(lambda _: 0.3, lambda _: 0.9, lambda _: 0.0)
    hooks = [lambda _, loss, __: losses.append(loss)]
    train(model, optimizer, steps, nll=model.nll, steps=40, schedule=constant, hooks=hooks)
    assert losses[-1] < 0.5 * losses[0]


def test_a_device_without_fp8_and_an_odd_context_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--fp8 needs a GPU with fp8 products .*; this is a cpu"):
        use_fp8(toy.model())
    with FakeTensorMode(), torch.device("cuda"):
        model, odd = GPT(toy.CONFIG), GPT(replace(toy.CONFIG, sequence_len=100))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"8.9 or more\); NVIDIA A100 has 8.0"):
        use_fp8(model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(ValueError, match="multiple of 16, got 100"):
        use_fp8(odd)
    use_fp8(model)


def test_a_gpus_kernels_take_the_layouts_of_all_products() -> None:
    """PyTorch checks layouts on fake tensors as on real ones. Its engine needs a GPU, so `backward` is called here."""
    saved = SimpleNamespace()
    saved.save_for_backward = lambda *tensors: setattr(saved, "saved_tensors", tensors)
    with FakeTensorMode(), torch.device("cuda"):
        x, weight = torch.randn(32, 48, dtype=torch.bfloat16), torch.randn(64, 48)
        y = Fp8Product.forward(saved, x, weight)
        for grad in (torch.randn(32, 64), torch.randn(64, 32).t(), torch.ones(()).expand(32, 64)):
            by_x, by_weight = Fp8Product.backward(saved, grad.to(torch.bfloat16))
            assert (by_x.shape, by_x.dtype) == (x.shape, x.dtype)
            assert (by_weight.shape, by_weight.dtype) == (weight.shape, weight.dtype)
    assert (y.shape, y.dtype) == ((32, 64), torch.bfloat16)


def test_the_compiler_gets_the_model_as_one_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    config = GPTConfig(sequence_len=160, vocab_size=265, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, ids = on_fake_gpu(config), torch.zeros(2, 160, dtype=torch.int64, device="cuda")
        put_into(model, Fp8Linear)
        torch.compile(model.nll, backend=backend, dynamic=False, fullgraph=True)(ids, ids)
    (graph,) = graphs
    parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
    calls = [str(node.target) for part in parts for node in part.graph.nodes]
    assert sum("_scaled_mm" in call for call in calls) >= 6 * config.n_layer + 1

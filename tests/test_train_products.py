"""Training with bf16 products on CPUs that are fast at them, and nowhere else."""

from pathlib import Path

import pytest
import torch
import toy
from test_train_stage import run
from torch import Tensor, nn

from raychat.log import read_metrics
from raychat.train.products import use_bf16


def rounded(x: Tensor) -> Tensor:
    return x.detach().bfloat16().double()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_and_its_gradients_are_products_of_rounded_tensors(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x, grad = nn.Linear(48, 64, bias=bias), torch.randn(2, 16, 48, requires_grad=True), torch.randn(2, 16, 64)
    use_bf16(nn.ModuleList([layer]))
    y = layer(x)
    y.backward(grad)
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert {tensor.dtype for tensor in (y, x.grad, layer.weight.grad, layer.weight)} == {torch.float32}
    by_weight = torch.einsum("btm,btk->mk", rounded(grad), rounded(x))
    expected = rounded(x) @ rounded(layer.weight).T + (layer.bias.detach().double() if bias else 0)
    # the result is rounded to bf16's 8 bits once
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-2)
    torch.testing.assert_close(x.grad.double(), rounded(grad) @ rounded(layer.weight), rtol=2**-8, atol=1e-2)
    torch.testing.assert_close(layer.weight.grad.double(), by_weight, rtol=2**-8, atol=1e-2)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert 0 < (y - plain).norm() < 0.01 * plain.norm()


def test_evaluation_and_state_are_those_of_the_plain_model() -> None:
    plain, model, ids = toy.model(), toy.model(), torch.arange(32).view(2, 16)
    before = dict(model.named_parameters())
    use_bf16(model)
    assert dict(model.named_parameters()) == before  # the same objects under the same names
    assert torch.equal(model.eval()(ids), plain(ids))
    model.train()
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    assert not torch.equal(model(ids), plain(ids))


@pytest.mark.parametrize(
    ("wanted", "has_amx", "rounds"), [("", True, True), ("", False, False), ("float32", True, False)]
)
def test_a_stage_rounds_on_cpus_with_amx_unless_a_dtype_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, has_amx: bool, rounds: bool
) -> None:
    losses = []
    for name, dtype in (("plain", "float32"), ("one", wanted)):
        monkeypatch.setenv("RAYCHAT_DTYPE", dtype)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
        stage = toy.token_stage(tmp_path, name)
        run(stage)
        losses.append([row["loss"] for row in read_metrics(stage.folder) if "loss" in row])
    plain, found = losses
    assert (plain[0] != found[0]) == rounds  # before the optimizer, which rounds, too, has done anything
    assert plain == pytest.approx(found, rel=0.05)

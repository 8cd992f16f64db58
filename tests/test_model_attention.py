"""Attention against its definition: an explicit softmax over the visible positions."""

import importlib.metadata
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, random_model, varlen_attn
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from raychat.model.attention import (
    _KERNELS,
    _attend_rows,
    _try_kernel,
    attend,
    attend_chunk,
    attend_slots,
    rotary_table,
    rotate,
    use_fastest_kernel,
)
from raychat.model.base import Model

T, H, D = 160, 4, 16


def explicit(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """(B, T, H, D) attention, position by position, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.size(2) // k.size(2)
    out = torch.zeros_like(q)
    for t in range(q.size(1)):
        first = max(0, t - window)
        for h in range(q.size(2)):
            keys, values = k[:, first : t + 1, h // group], v[:, first : t + 1, h // group]
            scores = torch.einsum("bd,bsd->bs", q[:, t, h], keys) / math.sqrt(q.size(-1))
            out[:, t, h] = torch.einsum("bs,bsd->bd", scores.softmax(-1), values)
    return out


def qkv(kv_heads: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, T, h, D, device=device, dtype=dtype) for h in (H, kv_heads, kv_heads))  # type: ignore[return-value]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [0, 1, 31, 158, 159, 1000])
def test_attend_equals_explicit_softmax(window: int, kv_heads: int) -> None:
    q, k, v = qkv(kv_heads)
    torch.testing.assert_close(attend(q, k, v, window).double(), explicit(q, k, v, window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [5, 59, 1000])
@pytest.mark.parametrize("start", [0, 100])
def test_attention_of_a_chunk_is_whole_attentions(window: int, start: int) -> None:
    q, k, v = qkv(2)
    expected = attend(q, k, v, window)[0, start:]
    torch.testing.assert_close(attend_chunk(q[0, start:], k[0], v[0], window), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_slots_is_an_explicit_softmax(masked: bool) -> None:
    q, k, v = qkv(2)
    mask = torch.rand(2, T) < 0.5 if masked else torch.ones(2, T, dtype=torch.bool)
    got = attend_slots(q[:, -1], k, v, mask[:, None, None] if masked else None)
    for row in range(2):
        seen = [x[row : row + 1, mask[row]] for x in (k, v)]
        expected = explicit(torch.cat([q[row : row + 1, -1:]] * mask[row].sum(), 1), *seen, window=T)[0, -1]
        torch.testing.assert_close(got[row].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("window", [0, 31, 158, 159])
def test_rows_of_the_one_kernel_are_an_explicit_softmax(
    monkeypatch: pytest.MonkeyPatch, window: int, kv_heads: int
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    q, k, v = qkv(kv_heads)
    torch.testing.assert_close(_attend_rows(q, k, v, window).double(), explicit(q, k, v, window), rtol=1e-5, atol=1e-5)


def test_a_kernel_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.setattr("raychat.model.attention._KERNELS", _KERNELS[:1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    use_fastest_kernel.__wrapped__(torch.device("cuda"))
    refused, chosen = capsys.readouterr().out.splitlines()
    assert refused.startswith("FA3 is installed, but flash_attn_interface cannot be used: ")
    assert chosen == "attention on H100: FA2, PyTorch's own"


@pytest.mark.parametrize("build", [random_model, gpt2])
def test_a_model_chooses_the_kernel_when_it_is_placed(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], Model]
) -> None:
    model, devices = build(), list[torch.device]()
    monkeypatch.setattr(f"{type(model).__module__}.use_fastest_kernel", devices.append)
    model.place(torch.device("cpu"), torch.float32)
    assert devices == [torch.device("cpu")]


# Stands for the package of FlashAttention 3, which registers its kernels where PyTorch looks for them.
FA3 = """
import torch

library = torch.library.Library("flash_attn_3", "FRAGMENT")
for name in ("fwd", "bwd"):
    library.define(f"{name}(Tensor q) -> Tensor")
"""


@pytest.fixture
def hopper_with_fa3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An H100, as far as PyTorch says, with that package."""
    (tmp_path / "flash_attn_interface.py").write_text(FA3)
    monkeypatch.setattr("raychat.model.attention._KERNELS", _KERNELS[:1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    sys.modules.pop("flash_attn_interface", None)
    yield
    if current_flash_attention_impl():
        restore_flash_attention_impl()
    sys.modules.pop("flash_attn_interface")  # its kernels go with it


def test_an_installed_kernel_is_used(
    hopper_with_fa3: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("raychat.model.attention._try_kernel", lambda device: None)
    use_fastest_kernel.__wrapped__(torch.device("cuda"))
    assert current_flash_attention_impl() == "FA3"
    assert capsys.readouterr().out == "attention on H100: FA3\n"


def test_a_kernel_that_does_not_compute_is_not_used(hopper_with_fa3: None, capsys: pytest.CaptureFixture[str]) -> None:
    use_fastest_kernel.__wrapped__(torch.device("cuda"))
    assert current_flash_attention_impl() is None
    refused, chosen = capsys.readouterr().out.splitlines()
    assert refused.startswith("FA3 is installed, but flash_attn_interface cannot be used: ")
    assert chosen == "attention on H100: FA2, PyTorch's own"


def test_a_kernel_is_tried_on_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is right passes; one that is off in one pass alone, forward, backward or over a cache, does not."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    _try_kernel(torch.device("cpu"))

    def off(wrong: str, *tensors: Any, **settings: Any) -> Tensor:
        (left, right), cached = settings["window_size"], "seqused_k" in settings
        inputs = [2 * x - x.detach() if wrong == "backward" and x is tensors[1] else x for x in tensors]
        if (wrong == "cache" and cached) or (wrong == "forward" and not cached):
            settings["window_size"] = (left + 8, right)
        return varlen_attn(*inputs, **settings)

    for wrong in ("forward", "backward", "cache"):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", partial(off, wrong))
        with pytest.raises(AssertionError):
            _try_kernel(torch.device("cpu"))


@pytest.mark.parametrize("arch", [90, 100])
def test_flash_attention_4_compiles_as_pytorch_calls_it(arch: int) -> None:
    """For H100s and B200s, which need not be there."""
    if not list(importlib.metadata.distributions(name="flash-attn-4")):
        pytest.skip("needs FlashAttention 4: pip install -c constraints.txt -e '.[gpu]'")
    script = Path(__file__).parent / "fa4_compiles.py"
    environment = os.environ | {"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "0"}
    done = subprocess.run([sys.executable, str(script), str(arch)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("window", [31, 1000])
def test_attend_on_cuda_equals_explicit_softmax(window: int) -> None:
    q, k, v = qkv(2, "cuda", torch.bfloat16)
    # bf16 has 8 bits of mantissa: 2^-8 relative on values of about 1
    torch.testing.assert_close(attend(q, k, v, window).double(), explicit(q, k, v, window), rtol=2e-2, atol=2e-2)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    cos, sin = rotary_table(64, D, 10_000.0, torch.device("cpu"))
    q, k = torch.randn(1, 1, 1, D), torch.randn(1, 1, 1, D)

    def score(i: int, j: int) -> Tensor:
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(rotate(q, cos[9:10], sin[9:10]).norm(), q.norm())
    torch.testing.assert_close(score(40, 33), score(10, 3), rtol=1e-4, atol=1e-5)


def test_rotation_turns_halves_by_minus_theta() -> None:
    cos, sin = rotary_table(2, 2, 100.0, torch.device("cpu"))  # one pair, theta = position
    turned = rotate(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]]), cos, sin)
    torch.testing.assert_close(turned[0, 1, 0], torch.tensor([math.cos(1.0), -math.sin(1.0)]))

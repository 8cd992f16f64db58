"""Causal attention with sliding windows, and rotary embeddings.

On a GPU in 16 bit, training, evaluation and the engine share one kernel: PyTorch's FlashAttention over sequences of any
lengths (`varlen_attn`). `use_fastest_kernel` puts FlashAttention 3 or 4 under it. Elsewhere PyTorch's
`scaled_dot_product_attention` computes the same function; `explicit` in the tests is its definition.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from raychat import paths

_BEFORE_2_13 = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
# PyTorch's names of faster kernels, the modules that hold them, and the GPUs (major compute capability) that run them.
_KERNELS = (("FA3", "flash_attn_interface", (9,)), ("FA4", "flash_attn.cute.interface", (9, 10)))


@lru_cache(maxsize=8)
def use_fastest_kernel(device: torch.device) -> None:
    """Choose the attention kernel of this process on a GPU, the fastest one that is installed, and print its name."""
    if device.type != "cuda":
        return
    from torch.nn.attention import activate_flash_attention_impl

    # FlashAttention 4 is compiled where it is used, in a minute; kept on this machine, that is done once.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", paths.on_this_machine("compiled/attention"))
    chosen = "FA2, PyTorch's own"
    for name, module, majors in _KERNELS:
        installed = importlib.util.find_spec(module.split(".")[0]) is not None
        if installed and torch.cuda.get_device_capability(device)[0] in majors:
            try:
                activate_flash_attention_impl(name)
                _try_kernel(device)
            except Exception as error:  # whatever a release raises that was made for another PyTorch
                why = " ".join(str(error).split())
                print(f"{name} is installed, but {module} cannot be used: {why}", flush=True)
            else:
                chosen = name
                break
    print(f"attention on {torch.cuda.get_device_name(device)}: {chosen}", flush=True)


def _try_kernel(device: torch.device) -> None:
    """Attend in a window, forward, backward and over a cache; where that is not right, go back to PyTorch's own.

    A package may have the names that PyTorch looks for, and other arguments or results than it expects.

    Raises:
        Exception: What the kernel raised, or how far its numbers are off.
    """
    from torch.nn.attention import restore_flash_attention_impl

    window = 16
    try:
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator(device).manual_seed(0)
            shapes = [(2, 160, heads, 128) for heads in (2, 1, 1, 2)]
            q, k, v, grad = (torch.randn(s, generator=generator, device=device, dtype=torch.bfloat16) for s in shapes)
            expected = _pass(partial(attend, window=window), q.float(), k.float(), v.float(), grad.float())
            tried = _pass(partial(_attend_rows, window=window), q, k, v, grad)
            for ours, theirs in zip(tried, expected, strict=True):
                torch.testing.assert_close(ours.float(), theirs, rtol=5e-2, atol=5e-2)  # bf16 has 8 bits
            rows = torch.arange(3, dtype=torch.int32, device=device)
            packed = PackedSequences(rows, rows * q.size(1), torch.full_like(rows[:2], q.size(1)), longest=1)
            last = attend_packed(q[:, -1], k, v, packed, window)  # as the engine decodes
            torch.testing.assert_close(last.float(), expected[0][:, -1], rtol=5e-2, atol=5e-2)
    except Exception:
        restore_flash_attention_impl()
        raise


def _pass(attention: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return what attention makes of q, k and v, and their gradients where the last tensor is the result's."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    out = attention(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, tensors[3])


def rotary_table(length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines, and sines whose second half is negative, each (length, head_dim) fp32, as `rotate` needs them.

    Source: RoPE, arXiv:2104.09864.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves (a, b) of x (B, T, H, D) by minus theta; cos and sin (T, D) are of `rotary_table`."""
    y = x.float()
    a, b = y.chunk(2, dim=-1)
    return torch.addcmul(y * cos.unsqueeze(-2), torch.cat((b, a), dim=-1), sin.unsqueeze(-2)).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend causally over whole sequences.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, K, D), H a multiple of K (grouped-query attention).
        window: a query sees its own position and this many to its left; >= T - 1 means the whole context.

    Returns:
        (B, T, H, D).
    """
    if q.is_cuda and q.dtype != torch.float32:
        return _attend_rows(q, k, v, window)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped, length = q.size(1) != k.size(1), q.size(2)
    mask = None if window >= length - 1 else _window_mask(length, length, window, q.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute `attend` in the one kernel, every row a sequence of its own."""
    B, T, _, _ = q.shape
    bounds = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
    out = _varlen(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bounds, bounds, T, T, window)
    return out.view(q.shape)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    offsets: Tensor,
    longest: int,
    length: int,
    window: int,
    seen: Tensor | None = None,
) -> Tensor:
    """Run the one kernel: `varlen_attn`, and in PyTorch before 2.13, where that knows no cache, what is below it."""
    from torch.nn.attention.varlen import varlen_attn  # imported where it runs: that takes 2 s, in every process

    size = (window if window < length - 1 else -1, 0)
    if seen is not None and _BEFORE_2_13:
        flash = torch.ops.aten._flash_attention_forward
        left, right = size
        return flash(
            *(q, k, v, bounds, offsets, longest, length, 0.0, left < 0, False),
            window_size_left=left,
            window_size_right=right,
            seqused_k=seen,
        )[0]
    settings: dict[str, Any] = {} if seen is None else {"seqused_k": seen, "num_splits": 1}
    if not _BEFORE_2_13:  # it took groups of queries without being told
        settings["enable_gqa"] = q.size(1) != k.size(1)
    out = varlen_attn(q, k, v, bounds, offsets, longest, length, window_size=size, **settings)
    assert isinstance(out, Tensor)
    return out


def attend_slots(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with one query of each sequence over what a cache holds of it.

    Args:
        q: (B, H, D).
        k, v: (B, S, K, D), views of the cache.
        mask: (B, 1, 1, S) bool, the entries that a query sees; None = all.

    Returns:
        (B, H, D).
    """
    q, k, v = q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.size(1) != k.size(1)).squeeze(2)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend with the last T of a sequence's S tokens.

    Args:
        q: (T, H, D).
        k, v: (S, K, D), views of the cache.
        window: as in `attend`.

    Returns:
        (T, H, D).
    """
    T, S = q.size(0), k.size(0)
    grouped = q.size(1) != k.size(1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if T == S and window >= S - 1:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        mask = _cached_window_mask(T, S, window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out[0].transpose(0, 1)


class PackedSequences(NamedTuple):
    """Which tokens of a packed pass belong to which sequence, and where these lie in the layers of one span."""

    bounds: Tensor  # (sequences + 1,) int32, where each sequence's tokens begin and end
    offsets: Tensor  # (sequences + 1,) int32, first entry of its slot; one more, as the kernel wants as many as bounds
    seen: Tensor  # (sequences,) int32, entries of its slot up to its last query
    longest: int  # tokens


def attend_packed(q: Tensor, keys: Tensor, values: Tensor, packed: PackedSequences, window: int) -> Tensor:
    """Attend with the last tokens of all sequences in one kernel, in place over the slots of a cache (CUDA, 16 bit).

    With one split a sequence's result does not depend on the others.

    Args:
        q: (N, H, D).
        keys, values: (slots, S, K, D).
        window: as in `attend`.

    Returns:
        (N, H, D).
    """
    length = keys.size(1)
    flat = keys.flatten(0, 1), values.flatten(0, 1)
    return _varlen(q, *flat, packed.bounds, packed.offsets, packed.longest, length, window, packed.seen)


def _window_mask(num_queries: int, length: int, window: int, device: torch.device) -> Tensor:
    """Return what each of the last queries of a sequence sees, (num_queries, length) bool."""
    position = torch.arange(length, device=device)
    distance = position[length - num_queries :, None] - position
    return (distance >= 0) & (distance <= window)


_cached_window_mask = lru_cache(maxsize=16)(_window_mask)  # for all layers; the compiler does not look into caches

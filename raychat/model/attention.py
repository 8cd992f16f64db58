"""Causal attention with sliding windows, and rotary embeddings.

`attend` picks the kernel when it is called, by where its tensors are: FlashAttention 3 through the `kernels` package on
Hopper GPUs where that is installed, FlexAttention for windows on other CUDA devices, else PyTorch's own
`scaled_dot_product_attention`. All of them compute the same function; `explicit` in the tests is its definition.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:  # its kernels, and varlen's, are imported where they run: that takes 2 s, in every process
    from torch.nn.attention.flex_attention import BlockMask


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
    if q.device.type == "cuda" and (flash := _flash_attention_3(q.device)) is not None and q.dtype == torch.bfloat16:
        out = flash(q, k, v, causal=True, window_size=(window if window < q.size(1) - 1 else -1, 0))
        return out[0] if isinstance(out, tuple) else out
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.size(1) != k.size(1)
    length = q.size(2)
    if window >= length - 1:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif q.device.type == "cuda":
        out = _compiled_flex()(q, k, v, block_mask=_window_blocks(length, window, q.device), enable_gqa=grouped)
    else:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_window_mask(length, length, window, q.device), enable_gqa=grouped
        )
    return out.transpose(1, 2)


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
        mask = _window_mask(T, S, window, q.device)
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
    from torch.nn.attention.varlen import varlen_attn

    length = keys.size(1)
    out = varlen_attn(
        q,
        keys.flatten(0, 1),
        values.flatten(0, 1),
        packed.bounds,
        packed.offsets,
        packed.longest,
        length,
        window_size=(window if window < length else -1, 0),
        enable_gqa=q.size(1) != keys.size(2),
        seqused_k=packed.seen,
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out


@lru_cache(maxsize=16)
def _window_mask(num_queries: int, length: int, window: int, device: torch.device) -> Tensor:
    """Return what each of the last queries of a sequence sees, (num_queries, length) bool."""
    position = torch.arange(length, device=device)
    distance = position[length - num_queries :, None] - position
    return (distance >= 0) & (distance <= window)


@lru_cache(maxsize=16)
def _window_blocks(length: int, window: int, device: torch.device) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    return create_block_mask(visible, None, None, length, length, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # uncompiled, FlexAttention materialises the scores


@lru_cache(maxsize=8)
def _flash_attention_3(device: torch.device) -> Any | None:
    """Return FlashAttention 3's function on Hopper where the `kernels` package can load it, else None."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return None
    try:
        from kernels import get_kernel  # type: ignore[import-not-found, unused-ignore]

        return get_kernel("kernels-community/flash-attn3").flash_attn_func
    except Exception:  # not installed, no network for the first download, no build for this torch: FlexAttention serves
        return None

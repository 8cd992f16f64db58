"""Compile FlashAttention 4's kernels for a GPU that need not be there, called as PyTorch calls them; a process's main.

    python tests/fa4_compiles.py 90     # compute capability; 90 = H100, 100 = B200

On fake tensors the package compiles and does not run. PyTorch's own functions between its operators and the package are
called directly, as operators on fake tensors do not get there.
"""

import os
import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import _fa4

T, SLOTS, LENGTH, D = 256, 2, 512, 128


def main(arch: int) -> None:
    os.environ["FLASH_ATTENTION_ARCH"], os.environ["CUTE_DSL_ARCH"] = f"sm_{arch}", f"sm_{arch}a"
    _fa4._FA4_MODULE_PATH = "flash_attn.cute.interface"
    _fa4._fa4_import_module(_fa4._FA4_MODULE_PATH)  # it looks for a GPU, unless PyTorch has none
    torch.cuda.is_available = lambda: True
    _fa4._get_device_major = lambda device: arch // 10  # type: ignore[assignment]
    with FakeTensorMode(), torch.device("cuda"):
        bounds = torch.zeros(SLOTS + 1, dtype=torch.int32)
        for kv_heads, window in ((6, -1), (2, 64)):
            train(heads(SLOTS * T, 6), heads(SLOTS * T, kv_heads), bounds, window)
            decode(heads(SLOTS, 6), heads(SLOTS * LENGTH, kv_heads), bounds, window)


def heads(tokens: int, number: int) -> Tensor:
    return torch.zeros(tokens, number, D, dtype=torch.bfloat16)


def train(q: Tensor, k: Tensor, bounds: Tensor, window: int) -> None:
    """Forward and backward, as `attend` asks for them."""
    rest = (bounds, bounds, T, T, 0.0, window < 0)
    sides = {"window_size_left": window, "window_size_right": 0}
    out, lse, *_ = _fa4._fa4_flash_attention_forward_impl(q, k, k, *rest, False, **sides)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[1::-1], torch.float32)
    unused = torch.zeros(2), torch.zeros(0)
    grads = _fa4._fa4_flash_attention_backward_impl(out, q, k, k, out, lse, *rest, *unused, **sides)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, k.shape]


def decode(q: Tensor, keys: Tensor, bounds: Tensor, window: int) -> None:
    """One token of each sequence over a cache, as `attend_packed` asks for it."""
    sides = {"window_size_left": window, "window_size_right": 0}
    rest = (bounds, bounds, 1, LENGTH, 0.0, window < 0, False)
    cached = {"seqused_k": torch.zeros(SLOTS, dtype=torch.int32), "num_splits": 1}
    out, *_ = _fa4._fa4_flash_attention_forward_impl(q, keys, keys, *rest, **sides, **cached)
    assert out.shape == q.shape


if __name__ == "__main__":
    main(int(sys.argv[1]))

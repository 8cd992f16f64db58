"""The machine's limit for a decode step: the time to read the weights, or to multiply by them.

A step that decodes B sequences reads every weight matrix once and multiplies it by B rows. At small B the memory's
bandwidth bounds it, at large B the speed of matrix products. Both are measured here, with the process's threads: the
bandwidth on a matrix that no cache holds, the products on large square matrices.

It is a bound, not a promise. With 4 to 16 rows no library at hand (MKL, oneDNN, OpenBLAS) multiplies at the speed of
a square product; with 16 rows a head of 32,768 x 256 reaches about half of it (docs/LOG.md).

The limit counts the weights of all linear layers, the head included. It does not count embeddings, attention over the
cache, norms, sampling or Python. A model whose weights fit into the processor's cache can be faster.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from raychat.device import synchronize
from raychat.model.base import Model
from raychat.model.flops import matmul_weights

_READ_BYTES = 2**28
_SQUARE = 1024  # rows and columns of the matrices whose product is timed


class Speed(NamedTuple):
    """What this machine reaches."""

    bytes_per_s: float  # reading memory
    flops_per_s: float  # multiplying matrices

    def step_limit_s(self, model: Model, batch: int) -> float:
        """Return the seconds of the fastest possible decode step of `batch` sequences."""
        weights = matmul_weights(model)
        size = activation_dtype(model).itemsize
        return max(size * weights / self.bytes_per_s, 2 * batch * weights / self.flops_per_s)


def activation_dtype(model: Model) -> torch.dtype:
    """Return the dtype that a model computes in: its embeddings have it (`Model.place`)."""
    return next(module.weight.dtype for module in model.modules() if isinstance(module, nn.Embedding))


@torch.inference_mode()
def measure_speed(device: torch.device, dtype: torch.dtype, repeats: int = 3) -> Speed:
    """Measure the speed of this process on a device: the best of `repeats` runs.

    Compare it only with times of the same process, and measure both in turns: a machine's speed drifts.
    """
    matrix = torch.ones(256, _READ_BYTES // (256 * dtype.itemsize), device=device, dtype=dtype)
    row = torch.ones(256, device=device, dtype=dtype)
    square = torch.ones(_SQUARE, _SQUARE, device=device, dtype=dtype)
    read_s = min(best_s(read, device, repeats) for read in (matrix.sum, lambda: torch.mv(matrix.t(), row)))
    return Speed(_READ_BYTES / read_s, 2 * _SQUARE**3 / best_s(lambda: square @ square, device, repeats))


def best_s(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` calls, after one that does not count."""
    step()
    best = math.inf
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best

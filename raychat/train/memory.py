"""How many rows of a micro-batch a device has memory for, counted from the model."""

import torch

from raychat.device import compute_dtype
from raychat.model.base import Model, Muon

CPU_TOKENS = 4096  # of a micro-batch on a CPU, where larger ones are not faster
USABLE = 0.9  # of a GPU's memory: the allocator's gaps, the CUDA context and NCCL take the rest
# What the compiler's partitioner keeps for the backward pass, per token. Counted in its graphs of d12 and d20:
LAYER_WIDTHS = 21  # of width n_embd in a layer: 3 residuals, q, k, v, rotated q and k, attention, 2 x 4 of the MLP
LOGIT_BYTES = 12  # per entry of the vocabulary: three fp32 copies, in softcap and loss


def device_rows(model: Model, device: torch.device, num_workers: int) -> int:
    """Return the rows of `sequence_len` tokens that a micro-batch on this device should have."""
    if device.type == "cpu":
        return max(1, CPU_TOKENS // model.config.sequence_len)
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    return rows_that_fit(model, memory_bytes, num_workers, compute_dtype(device))


def rows_that_fit(model: Model, memory_bytes: int, num_workers: int, dtype: torch.dtype) -> int:
    """Return the largest power of two of rows that train in `memory_bytes`, computing in `dtype`; at least 1.

    The model may be on any device, also on `meta`.
    """
    free = USABLE * memory_bytes - _fixed_bytes(model, num_workers, dtype)
    rows = int(free // _row_bytes(model, dtype))
    return 1 << max(rows, 1).bit_length() - 1


def _fixed_bytes(model: Model, num_workers: int, dtype: torch.dtype) -> float:
    """Count weights, gradients, the cast copies of the linear layers' weights, and this worker's optimizer state."""
    rates = model.optimizer_rates()
    total = 0.0
    for name, p in model.named_parameters():
        state = 4 if isinstance(rates[name], Muon) else 8
        cast = dtype.itemsize if p.dtype != dtype else 0
        total += p.numel() * (2 * p.element_size() + cast + state / num_workers)
    return total


def _row_bytes(model: Model, dtype: torch.dtype) -> float:
    config = model.config
    layers = LAYER_WIDTHS * config.n_layer * config.n_embd * dtype.itemsize
    return float(config.sequence_len * (layers + LOGIT_BYTES * config.vocab_size))

"""How many rows of a micro-batch a device has memory for, counted from the model."""

from typing import NamedTuple

import torch

from raychat.model.base import Model, Muon

CPU_TOKENS = 4096  # of a micro-batch on a CPU, where larger ones are not faster
USABLE = 0.9  # of a GPU's memory: the allocator's gaps, the CUDA context and NCCL take the rest
# What the compiler's partitioner keeps for the backward pass, per token. Counted in its graphs of d4 to d12:
LAYER_WIDTHS = 22  # of width n_embd in a layer: 3 residuals, q, k, v, rotated q and k, attention, 2 x 4 of the MLP
LOGIT_COPIES = 2  # per entry of the vocabulary: the logits before the softcap, and their gradient


class StepBytes(NamedTuple):
    """What a training step keeps in the memory of one device, in bytes."""

    weights: float
    casts: float  # copies of weights in the dtype of the activations
    gradients: float
    optimizer: float  # this worker's part of the state
    activations: float  # that the backward pass needs
    logits: float  # and their gradient


def device_rows(
    model: Model, device: torch.device, num_workers: int, dtype: torch.dtype, activation_budget: float = 1.0
) -> int:
    """Return the rows of `sequence_len` tokens that a micro-batch on this device should have, computing in `dtype`.

    Raises:
        ValueError: The device's memory is too small for a single row.
    """
    if device.type == "cpu":
        return max(1, CPU_TOKENS // model.config.sequence_len)
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    rows = rows_that_fit(model, memory_bytes, num_workers, dtype, activation_budget)
    need = sum(step_bytes(model, rows, num_workers, dtype, activation_budget))
    if need > memory_bytes:  # up to that it may fit: the count is on the safe side
        raise ValueError(
            f"a step of one row of {model.config.sequence_len} tokens on {num_workers} workers takes "
            f"{need / 2**30:.1f} GiB of a device's memory, this one has {memory_bytes / 2**30:.1f} GiB: too small; "
            "take more workers, a smaller --activation-budget or a smaller model, or try --device-rows 1"
        )
    return rows


def rows_that_fit(
    model: Model, memory_bytes: int, num_workers: int, dtype: torch.dtype, activation_budget: float = 1.0
) -> int:
    """Return the largest power of two of rows that train in `memory_bytes`, computing in `dtype`; at least 1.

    The model may be on any device, also on `meta`.
    """
    fixed, with_a_row = (sum(step_bytes(model, rows, num_workers, dtype, activation_budget)) for rows in (0, 1))
    rows = int((USABLE * memory_bytes - fixed) // (with_a_row - fixed))
    return 1 << max(rows, 1).bit_length() - 1


def step_bytes(
    model: Model, rows: int, num_workers: int, dtype: torch.dtype, activation_budget: float = 1.0
) -> StepBytes:
    """Count the bytes that training on micro-batches of `rows` rows, computing in `dtype`, keeps on a device.

    Args:
        activation_budget: share of the activations that is kept (`one_graph`); the rest is computed anew.
    """
    config, rates, params = model.config, model.optimizer_rates(), dict(model.named_parameters())
    tokens = rows * config.sequence_len
    weights = sum(p.numel() * p.element_size() for p in params.values())
    state = sum(p.numel() * (4 if isinstance(rates[name], Muon) else 8) for name, p in params.items())
    return StepBytes(
        weights=weights,
        casts=sum(p.numel() * dtype.itemsize for p in params.values() if p.dtype != dtype),
        gradients=weights,
        optimizer=state / num_workers,
        activations=activation_budget * tokens * LAYER_WIDTHS * config.n_layer * config.n_embd * dtype.itemsize,
        logits=tokens * LOGIT_COPIES * config.vocab_size * dtype.itemsize,
    )

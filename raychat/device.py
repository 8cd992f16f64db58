"""Device, dtypes and peak speed: resolved on first use, in the process that uses them, never at import."""

import ctypes
import functools
import os

import numpy as np
import torch
from torch import Tensor

# Peak dense bf16 FLOP/s by a part of the device's name (vendor data sheets).
_PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}  # of RAYCHAT_DTYPE

# mallopt's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD: no block of its own from the system, nothing given back
_MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**26}


def default_device() -> torch.device:
    """Return the device to compute on: the current CUDA device, or the CPU without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    _keep_freed_memory()
    return torch.device("cpu")


@functools.cache  # once per process
def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    It would give back every large block, and get it again page by page: a quarter of a large training step on a CPU. In
    a thread it only keeps blocks below 64 MB, unless the process began with MALLOC_ARENA_MAX=1.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of matmuls and activations: bf16 on GPUs that support it, else fp32."""
    if device.type != "cuda":
        return torch.float32
    # Not torch.cuda.is_bf16_supported(): it counts slow emulation and checks the current device.
    has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float32


def training_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of matmuls and activations in training: RAYCHAT_DTYPE, bfloat16 or float32, else as elsewhere.

    On a CPU without it, activations are fp32 and what is multiplied has `product_dtype`.

    Raises:
        ValueError: RAYCHAT_DTYPE is something else.
    """
    wanted = os.environ.get("RAYCHAT_DTYPE")
    if not wanted:
        return compute_dtype(device)
    if wanted not in _DTYPES:
        raise ValueError(f"RAYCHAT_DTYPE is {wanted!r}, expected {' or '.join(_DTYPES)}")
    return _DTYPES[wanted]


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of what is multiplied in training, by layers and by Muon: bf16 also on CPUs with AMX.

    Elsewhere it is that of training.

    Raises:
        ValueError: RAYCHAT_DTYPE, which decides where it is set, is no dtype to train in.
    """
    has_amx = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if has_amx and not os.environ.get("RAYCHAT_DTYPE") else training_dtype(device)


def peak_flops(device: torch.device) -> float | None:
    """Return the device's peak dense bf16 FLOP/s, or None when unknown: MFU is then not reported."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_of(name: str) -> float | None:
    """Return the peak dense bf16 FLOP/s of a GPU by its name, such as "NVIDIA A100-SXM4-80GB"; None when unknown."""
    return next((flops for part, flops in _PEAK_BF16_FLOPS.items() if part in name), None)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on the device, without waiting for what the device has still to do.

    On a CPU the tensor shares the array's memory.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued kernels: read the clock only after that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Device, dtypes and peak speed: resolved on first use, in the process that uses them, never at import."""

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


def default_device() -> torch.device:
    """Return the device to compute on: the current CUDA device, or the CPU without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of matmuls and activations: bf16 on GPUs that support it, else fp32."""
    if device.type != "cuda":
        return torch.float32
    # Not torch.cuda.is_bf16_supported(): it counts slow emulation and checks the current device.
    has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float32


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

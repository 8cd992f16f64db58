"""Matrix products in 8 bits for training.

Every tensor has one scale, which takes its largest magnitude to the largest number of the format (tensorwise scaling).
Activations and weights are e4m3 (three bits of mantissa), gradients e5m2 (a wider range). Products accumulate in
float32 and come out in the dtype of the activations; the gradient of a weight comes out in the weight's.

Source: FP8 formats for deep learning, arXiv:2209.05433.
"""

from typing import Any

import torch
from torch import Tensor

from raychat.model.base import Model
from raychat.train.products import MULTIPLE, ProductLinear, put_into

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
TINY = 1e-30  # a tensor of zeros has the scale of this magnitude


def use_fp8(model: Model) -> None:
    """Let the large linear layers of a model that is on its device multiply in fp8 while they are trained.

    Evaluation, sampling and checkpoints see the layers as they were.

    Raises:
        ValueError: The device has no fp8 products, or the context is no multiple of 16.
    """
    if (why := lacks_fp8(model.device)) is not None:
        raise ValueError(f"--fp8 needs a GPU with fp8 products (compute capability 8.9 or more); {why}")
    if model.config.sequence_len % MULTIPLE:
        got = model.config.sequence_len
        raise ValueError(f"--fp8 needs a --sequence-len that is a multiple of {MULTIPLE}, got {got}")
    put_into(model, Fp8Linear)


def lacks_fp8(device: torch.device) -> str | None:
    """Return why a device has no fp8 products; None where it has them."""
    if device.type != "cuda":
        return f"this is a {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    return None


class Fp8Linear(ProductLinear):
    """Multiplies in fp8."""

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = Fp8Product.apply(x.flatten(0, -2), self.weight)
        return y.view(*x.shape[:-1], self.out_features)


class Fp8Product(torch.autograd.Function):
    """x (N, K) times the transposed weight (M, K), in fp8 like the two products of its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantized(x, FORWARD)
        weight8, weight_scale = quantized(weight.to(x.dtype), FORWARD)  # as other passes read it
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return scaled_product(x8, weight8.t(), x_scale, weight_scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        grad8, scale = quantized(grad, BACKWARD)
        by_x = scaled_product(grad8, weight8, scale, weight_scale, x_dtype)
        by_weight = scaled_product(grad8.t(), x8, scale, x_scale, weight_dtype)
        return by_x, by_weight


def quantized(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a tensor in fp8, and the scale () float32 by which that is to be multiplied.

    NaN stays NaN, and a tensor with an infinite value becomes NaN, so that the loop skips the step.
    """
    scale = x.abs().amax().float().clamp_min(TINY) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def scaled_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, *, fast: bool = False
) -> Tensor:
    """Multiply a (R, S) by b (S, C), both fp8 of any layout, with their scales; the result has the dtype given.

    fast: accumulate less exactly, as is enough for activations.
    """
    rows, columns = a.contiguous(), b.t().contiguous().t()  # the layouts that the kernels read
    return torch._scaled_mm(rows, columns, a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast)

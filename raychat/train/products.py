"""Other matrix products than a model's own, put into its large linear layers from outside, for training alone.

Evaluation, sampling and checkpoints see the layers as they were.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MULTIPLE = 16  # of which fast kernels want all sizes of a product


def put_into(model: nn.Module, linear: type["ProductLinear"]) -> None:
    """Give linear layers whose sizes are multiples of 16, so not the small gates, the products of another class.

    A layer changes its class alone: parameters, their names and everything else stay.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE):
            layer.__class__ = type(linear.__name__, (linear, type(layer)), {})


def use_bf16(model: nn.Module) -> None:
    """Let the large linear layers of a model in fp32 multiply in bf16 while they are trained, as GPUs do.

    Products accumulate in fp32. Weights, embeddings and what is added up from layer to layer stay in fp32.
    """
    put_into(model, Bf16Linear)


class ProductLinear(nn.Linear):
    """The forward pass of a linear layer: `product` in training mode with gradients, else the layer's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """Return x (..., K) times the transposed weight (M, K), in the dtype of x."""
        raise NotImplementedError


class Bf16Linear(ProductLinear):
    """Multiplies in bf16."""

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight.bfloat16()).to(x.dtype)

"""The linear layer of all models: its master weight is fp32, its product has the dtype of the activations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raychat.model.packed import PackedWeights


class Linear(nn.Linear):
    """A linear layer whose fp32 master weight and bias are cast to the activations' dtype."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.packed: PackedWeights | None = None  # what inference reads in place of the weight

    def pack(self) -> None:
        self.packed = PackedWeights([self.weight])

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.packed is None or torch.is_grad_enabled():
            return F.linear(x, self.weight.to(x.dtype), bias)
        y = self.packed(x)
        return y if bias is None else y + bias

"""Weights laid out for inference: joined, cast once, and on a CPU packed for the products of a decode step.

Measured on AVX2 (docs/LOG.md): a head of 32,768 x 256 times 4 to 32 rows takes half the time with oneDNN's layout,
and times one row a third with the transposed matrix. With smaller matrices packed, too, a whole step gained nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGE = 2**19  # elements of a matrix that is packed
_ROWS = 32  # that oneDNN's layout is chosen for


class PackedWeights:
    """The weights of linear layers without bias that read the same activations, as one product.

    A single weight in the dtype of the activations is read as it is, without a copy; of a large one a CPU keeps its own
    layouts beside it.

    Args:
        weights: each (outputs, inputs). One with fewer inputs than the first reads the first channels only.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._sources = list(weights)
        self._state: object = None  # of the sources, when they were packed
        self._weight = self._transposed = self._blocked = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute (..., outputs of all weights) from activations (..., inputs)."""
        state = (x.dtype, x.device, *(weight._version for weight in self._sources))
        if state != self._state:
            self._pack(x.dtype)
            self._state = state
        if self._weight.numel() < _LARGE or x.is_cuda:
            return F.linear(x, self._weight)
        if x.numel() == x.size(-1) and self._transposed.numel():
            return x @ self._transposed
        if self._blocked.numel():
            return _onednn_linear(x, self._blocked)
        return F.linear(x, self._weight)

    @torch.no_grad()
    def _pack(self, dtype: torch.dtype) -> None:
        self._transposed = self._blocked = torch.empty(0)
        inputs = self._sources[0].size(1)
        weights = [_padded(weight.detach().to(dtype), inputs) for weight in self._sources]
        self._weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        if self._weight.numel() >= _LARGE and not self._weight.is_cuda:
            if dtype == torch.float32:  # in bf16 the transposed product takes ten times as long
                self._transposed = self._weight.t().contiguous()
            if _onednn_packs(dtype):
                self._blocked = torch.ops.mkldnn._reorder_linear_weight(self._weight, _ROWS)


def _padded(weight: Tensor, inputs: int) -> Tensor:
    """Return a weight with zeros for the channels that it does not read; itself, not a copy, where it reads all."""
    missing = inputs - weight.size(1)
    return F.pad(weight, (0, missing)) if missing else weight


def _onednn_packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out

"""The one loss."""

from torch import Tensor
from torch.nn import functional as F

IGNORE = -1  # target where there is nothing to predict


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of every target, in nats.

    Args:
        logits: (..., V) fp32.
        targets: (...) int64, -1 where there is nothing to predict.

    Returns:
        (...) fp32, 0 where the target is -1.
    """
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(targets.shape)

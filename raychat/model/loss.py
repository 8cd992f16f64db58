"""The one loss."""

from torch import Tensor
from torch.nn import functional as F

IGNORE = -1  # target where there is nothing to predict


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of every target, in nats.

    Args:
        logits: (B, T, V) fp32.
        targets: (B, T) int64, -1 where there is nothing to predict.

    Returns:
        (B, T) fp32, 0 where the target is -1.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none").view(
        targets.shape
    )

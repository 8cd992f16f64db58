"""What AdamW and Muon do to numbers. Tensors are updated in place; nothing here knows of workers or names.

Sources: AdamW arXiv:1711.05101; Muon, Jordan 2024; row equilibration, MuonEq arXiv:2603.28254; Polar Express
arXiv:2505.16932; Frobenius rescaling, Muon+ arXiv:2602.21545; variance reduction, NorMuon arXiv:2510.05491.
"""

import math

import torch
from torch import Tensor

from raychat.device import product_dtype

NORMUON_BETA2 = 0.9
NORMUON_EPS = 1e-10
TINY = 1e-20  # makes 0 / 0 a 0; below any norm that matters

# (a, b, c) of X <- a X + (b A + c A^2) X with A = X X^T, five steps (Polar Express)
POLAR_STEPS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def adamw_(
    p: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-10,
) -> None:
    """Update `p`, in any float dtype, by AdamW with bias correction; the rest is float32. `step` counts from 1."""
    beta1, beta2 = betas
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
    # One subtraction: a bf16 weight would round a decay away that is subtracted on its own.
    p.sub_((mean / denominator).mul_(lr / (1 - beta1**step)).add_(p, alpha=lr * weight_decay))


def muon_(
    p: Tensor,
    grad: Tensor,
    buffer: Tensor,
    variance: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Update a stack of float32 matrices by Muon with row equilibration, variance reduction and cautious weight decay.

    Args:
        p, grad, buffer: (M, R, C); `buffer` is the momentum.
        variance: (M, R, 1) where R >= C, else (M, 1, C); second moment of the orthogonalised update.
        lr: before the factor sqrt(max(1, R / C)).
    """
    R, C = p.shape[-2:]
    buffer.lerp_(grad, 1 - momentum)
    u = equilibrated(grad.lerp(buffer, momentum))
    u = rescaled(polar(u, product_dtype(u.device)), math.sqrt(min(R, C)))
    variance.lerp_(u.square().mean(dim=-1 if R >= C else -2, keepdim=True), 1 - NORMUON_BETA2)
    u = rescaled(u * variance.clamp_min(NORMUON_EPS).rsqrt(), frobenius(u))
    cautious = u * p >= 0  # decay only what the update shrinks anyway
    p.sub_(u.addcmul_(p, cautious, value=weight_decay), alpha=lr * math.sqrt(max(1.0, R / C)))


def polar(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return nearly U V^T for every matrix U S V^T of a stack (M, R, C) float32; the products are in `dtype`.

    The singular values end near 1, not at 1; those below a thousandth of the norm stay smaller. Zeros give zeros.
    """
    if x.size(-2) > x.size(-1):
        return polar(x.mT, dtype).mT
    x = (x / (1.01 * frobenius(x) + 1e-6)).to(dtype)
    for a, b, c in POLAR_STEPS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


def equilibrated(x: Tensor) -> Tensor:
    """Scale every row to the mean norm of its matrix's rows; rows of zeros stay zeros."""
    norms = x.norm(dim=-1, keepdim=True)
    return x * (norms.mean(dim=-2, keepdim=True) / norms.clamp_min(TINY))


def rescaled(x: Tensor, norm: float | Tensor) -> Tensor:
    """Scale every matrix to a Frobenius norm; a matrix of zeros stays zeros."""
    return x * (norm / frobenius(x).clamp_min(TINY))


def frobenius(x: Tensor) -> Tensor:
    """Return the Frobenius norm of every matrix: (M, R, C) -> (M, 1, 1)."""
    return x.norm(dim=(-2, -1), keepdim=True)

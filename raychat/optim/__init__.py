"""The optimizers and their schedules."""

from raychat.model.base import Model
from raychat.optim.muon_adamw import MuonAdamW

__all__ = ["Optimizer", "build_optimizer"]

Optimizer = MuonAdamW  # what loop, stages and checkpoints call it


def build_optimizer(model: Model, *, lr_scale: float, weight_decay: float) -> Optimizer:
    """Build the optimizer of a model that is on its device, over the parameters that require a gradient."""
    return MuonAdamW(
        model.named_parameters(),
        model.optimizer_rates(),
        lr_scale=lr_scale,
        weight_decay=weight_decay,
        max_grad_norm=model.max_grad_norm,
    )

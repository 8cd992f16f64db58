"""The optimizers and their schedules."""

from collections.abc import Mapping

import torch

from raychat.model.base import AdamW, Model, Muon
from raychat.optim.muon_adamw import MuonAdamW

__all__ = ["Optimizer", "build_optimizer", "rates_of"]

Optimizer = MuonAdamW  # what loop, stages and checkpoints call it


def build_optimizer(
    model: Model,
    *,
    lr_scale: float,
    weight_decay: float,
    adamw: Mapping[str, float] | None = None,
    matrices_read_as: torch.dtype = torch.float32,
) -> Optimizer:
    """Build the optimizer of a model that is on its device, over the parameters that require a gradient.

    For the arguments see `MuonAdamW` and `rates_of`.
    """
    return MuonAdamW(
        model.named_parameters(),
        rates_of(model, adamw),
        lr_scale=lr_scale,
        weight_decay=weight_decay,
        max_grad_norm=model.max_grad_norm,
        matrices_read_as=matrices_read_as,
    )


def rates_of(model: Model, adamw: Mapping[str, float] | None = None) -> dict[str, AdamW | Muon]:
    """Return how each parameter is updated, by its name.

    Args:
        adamw: lr, beta2 and weight_decay of all that AdamW updates; None = the model's own.
    """
    rates = model.optimizer_rates()
    if adamw is None:
        return rates
    return {name: rate.changed(**adamw) if isinstance(rate, AdamW) else rate for name, rate in rates.items()}

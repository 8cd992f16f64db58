"""Floating-point operations of training, and what share of the device's peak they reach."""

from torch import nn


def matmul_weights(model: nn.Module) -> int:
    """Count the weights of all linear layers. Look-ups do not count (PaLM, arXiv:2204.02311, appendix B)."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def mfu(tokens_per_s: float, flops_per_token: int, peak_flops: float | None, workers: int) -> float | None:
    """Return the model FLOPs utilisation (1 = the peak of all workers' devices); None where the peak is unknown."""
    return None if peak_flops is None else tokens_per_s * flops_per_token / (peak_flops * workers)

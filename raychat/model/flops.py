"""Floating-point operations of training, and what share of the device's peak they reach."""

from torch import nn

from raychat.model.gpt import GPT


def per_token(model: GPT) -> int:
    """Count the FLOPs of forward and backward per token: 6 per matmul weight, 12 H D per key that a query sees.

    Embedding look-ups are no matmuls (PaLM, arXiv:2204.02311, appendix B).
    """
    config = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    keys = sum(min(config.sequence_len, window) for window in config.windows())
    return 6 * weights + 12 * config.n_head * config.head_dim * keys


def mfu(tokens_per_s: float, flops_per_token: int, peak_flops: float | None, workers: int) -> float | None:
    """Return the model FLOPs utilisation (1 = the peak of all workers' devices); None where the peak is not known."""
    return None if peak_flops is None else tokens_per_s * flops_per_token / (peak_flops * workers)

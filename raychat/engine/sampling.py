"""How a request is continued: its parameters, and the draw of the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one request is to be continued. Raises ValueError for values that mean nothing."""

    temperature: float = 1.0  # 0 = always the most likely token
    top_k: int | None = None  # only among the k most likely tokens; None = all
    top_p: float | None = None  # only among the most likely tokens that hold this much probability; None = all
    max_new_tokens: int = 256  # forced tokens and the stop token count
    seed: int | None = None  # the same seed gives the same tokens; None = a new one every time
    stop_ids: tuple[int, ...] | None = None  # tokens that end the answer; None = <|assistant_end|> and <|bos|>

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; expected a number >= 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected None or a whole number >= 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected None or a number in (0, 1]")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected a whole number >= 1")


DEFAULT = SamplingParams()


def sample(
    logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Draw a token for every row: cut to top-k, then to top-p of what is left, then invert the cumulative probability.

    logits: (B, V) fp32; uniforms: (B,) fp64 in [0, 1), the only randomness -> tokens (B,) int64. Top-k keeps exactly k
    tokens, ties or not; top-p the fewest most likely ones whose probabilities reach it (arXiv:1904.09751).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.double() / temperature, -1)
    if top_k is not None and top_k < probs.size(-1):
        kept, where = probs.topk(top_k, -1)
        probs = torch.zeros_like(probs).scatter(-1, where, kept)
    if top_p is not None and top_p < 1:
        kept, where = probs.sort(dim=-1, descending=True, stable=True)
        before = kept.cumsum(-1) - kept
        kept = kept.masked_fill(before >= top_p * kept.sum(-1, keepdim=True), 0)
        probs = torch.zeros_like(probs).scatter(-1, where, kept)
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)  # the first token whose cdf is above the target

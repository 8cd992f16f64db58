"""Sampling: a request's parameters, and the draw of its next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Any positive temperature below this acts like this one: it already leaves only the largest logits, since two different
# fp32 numbers are at least 1e-45 apart. Dividing by it cannot overflow fp64.
_MIN_TEMPERATURE = 1e-200


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one request.

    Raises:
        ValueError: a parameter is out of its range.
    """

    temperature: float = 1.0  # 0 = always the most likely token
    top_k: int | None = None  # only among the k most likely tokens; None = all
    top_p: float | None = None  # only among the most likely tokens that hold this much probability; None = all
    max_new_tokens: int = 256  # including the stop token and the tokens that a tool forces
    seed: int | None = None  # the same seed gives the same tokens; None = a new one every time
    stop_ids: tuple[int, ...] | None = None  # tokens that end the answer; None = <|assistant_end|> and <|bos|>

    def __post_init__(self) -> None:
        def expect(name: str, valid: bool, expected: str) -> None:
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        expect("temperature", 0 <= self.temperature < float("inf"), "a finite number >= 0")
        expect("top_k", self.top_k is None or _is_whole(self.top_k, 1), "None or a whole number >= 1")
        expect("top_p", self.top_p is None or 0 < self.top_p <= 1, "None or a number in (0, 1]")
        expect("max_new_tokens", _is_whole(self.max_new_tokens, 1), "a whole number >= 1")
        expect("seed", self.seed is None or _is_whole(self.seed, -(2**63), 2**64), "None or a whole number of 64 bits")


def _is_whole(number: float, least: int, end: float = float("inf")) -> bool:
    return isinstance(number, int) and least <= number < end


DEFAULT = SamplingParams()


def sample(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Draw tokens (B,) int64: keep each row's top-k, of these the top-p, then invert the cumulative probability.

    Top-k keeps exactly k tokens, also where probabilities are equal. Top-p keeps the fewest most likely tokens whose
    probabilities sum to p, and at least one.

    Args:
        logits: (B, V) fp32; -inf means that a token is impossible.
        uniforms: (B,) fp64 in [0, 1), the only source of randomness.

    Raises:
        FloatingPointError: a row holds NaN or +inf, or nothing but -inf.

    Source: Holtzman et al., arXiv:1904.09751 (top-p).
    """
    if not logits.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are NaN or infinite: its weights are broken")
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.double() / max(temperature, _MIN_TEMPERATURE), -1)
    if top_k is not None and top_k < probs.size(-1):
        kept, ids = probs.topk(top_k, -1)
        probs = torch.zeros_like(probs).scatter(-1, ids, kept)
    if top_p is not None and top_p < 1:
        kept, ids = probs.sort(dim=-1, descending=True, stable=True)
        cut = kept.cumsum(-1) - kept >= top_p * kept.sum(-1, keepdim=True)
        cut[:, 0] = False  # top_p times the sum may round to 0
        probs = torch.zeros_like(probs).scatter(-1, ids, kept.masked_fill(cut, 0))
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)  # the first token whose cdf is above the target

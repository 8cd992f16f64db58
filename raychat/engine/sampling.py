"""Sampling: a request's parameters, and the draw of the next tokens of a batch.

Every draw inverts the cumulative distribution in the order of token ids. So a token depends on its own row, its own
parameters and one uniform number, and not on the rows beside it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Bounds on the temperature in fp32. Outside of them, sampling acts like the greedy choice among the largest logits, or
# like a uniform draw.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30
_BLOCK = 128  # tokens whose probabilities are summed at once
_NUCLEUS = 1024  # of the most likely tokens that are sorted first for top-p without top-k


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one request.

    Logits are changed in this order: logit_bias, penalties, temperature; then tokens are left out by top_k, top_p and
    min_p. The penalties are those of the OpenAI API, and repetition_penalty is CTRL's (arXiv:1909.05858).

    Raises:
        ValueError: a parameter is out of its range.
    """

    temperature: float = 1.0  # 0 = always the most likely token
    top_k: int | None = None  # only among the k most likely tokens; None = all
    top_p: float | None = None  # only among the most likely tokens that hold this much probability; None = all
    max_new_tokens: int = 256  # including the stop token and the tokens that a tool forces
    seed: int | None = None  # the same seed gives the same tokens; None = a new one every time
    stop_ids: tuple[int, ...] | None = None  # tokens that end the answer; None = <|assistant_end|> and <|bos|>
    min_p: float | None = None  # only tokens at least this many times as likely as the most likely one; None = all
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of all tokens seen; 1 = none
    frequency_penalty: float = 0.0  # subtracted from the logit of a token once for every time it was generated
    presence_penalty: float = 0.0  # subtracted once from the logit of every token that was generated
    logit_bias: tuple[tuple[int, float], ...] = ()  # pairs of a token id and what is added to its logit
    logprobs: int | None = None  # log-probabilities of each new token and of this many alternatives; None = neither
    prompt_logprobs: int | None = None  # the same for the prompt's tokens after the first

    def __post_init__(self) -> None:
        def expect(name: str, valid: bool, expected: str) -> None:
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        expect("temperature", 0 <= self.temperature < math.inf, "a finite number >= 0")
        expect("top_k", self.top_k is None or _is_whole(self.top_k, 1), "None or a whole number >= 1")
        expect("top_p", self.top_p is None or 0 < self.top_p <= 1, "None or a number in (0, 1]")
        expect("min_p", self.min_p is None or 0 <= self.min_p <= 1, "None or a number in [0, 1]")
        expect("max_new_tokens", _is_whole(self.max_new_tokens, 1), "a whole number >= 1")
        expect("seed", self.seed is None or _is_whole(self.seed, -(2**63), 2**64), "None or a whole number of 64 bits")
        expect("repetition_penalty", 1e-6 <= self.repetition_penalty <= 1e6, "a number between 1e-6 and 1e6")
        for name in ("frequency_penalty", "presence_penalty"):
            expect(name, abs(getattr(self, name)) <= 1e6, "a number between -1e6 and 1e6")
        biases = all(_is_whole(id, 0) and abs(bias) <= 1e6 for id, bias in self.logit_bias)
        expect("logit_bias", biases, "pairs of a token id and a number between -1e6 and 1e6")
        for name in ("logprobs", "prompt_logprobs"):
            number = getattr(self, name)
            expect(name, number is None or _is_whole(number, 0), "None or a whole number >= 0")

    @property
    def changes_logits(self) -> bool:
        """Whether the logits are changed before the temperature."""
        penalties = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return any(penalties) or bool(self.logit_bias)


def _is_whole(number: float, least: int, end: float = math.inf) -> bool:
    return isinstance(number, int) and least <= number < end


DEFAULT = SamplingParams()


class Draws(NamedTuple):
    """What the draw of one token of each of B rows needs besides the logits."""

    uniforms: Tensor  # (B,) fp64 in [0, 1), the only source of randomness
    temperature: Tensor  # (B,) fp32, 0 = the most likely token
    top_k: Tensor  # (B,) int64; V or more = all
    top_p: Tensor  # (B,) fp64; 1 = all
    min_p: Tensor  # (B,) fp32; 0 = all

    @classmethod
    def one(cls, uniforms: Tensor, params: SamplingParams) -> Self:
        """Return the draws of rows that all have the same parameters."""
        row = torch.from_numpy(parameters([params])).expand(uniforms.size(0), -1)
        return cls.of(torch.cat((uniforms[:, None], row), -1))

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Read the columns of a table (B, 5) fp64, as `parameters` writes them, with the uniforms before them."""
        uniforms, temperature, top_k, top_p, min_p = table.unbind(-1)
        return cls(uniforms, temperature.float(), top_k.long(), top_p, min_p.float())


def parameters(requests: list[SamplingParams]) -> np.ndarray:
    """Return the sampling parameters (B, 4) fp64 of requests as columns for `Draws.of`: temperature to min_p."""
    rows = [
        (
            0.0 if p.temperature == 0 else min(max(p.temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE),
            min(p.top_k or 2**31, 2**31),
            p.top_p or 1.0,
            p.min_p or 0.0,
        )
        for p in requests
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """Draw a token (B,) int64 for every row of logits (B, V) fp32, where -inf means that a token is impossible.

    A row of NaN, with +inf or with nothing but -inf gives -1. Rows are treated by what they ask for: on a CPU only
    those with top-k, top-p or min-p pay for it.

    Source: Holtzman et al., arXiv:1904.09751 (top-p).
    """
    greedy, top = draws.temperature == 0, logits.amax(-1, keepdim=True)
    if logits.is_cuda:  # without waiting for the device: every row goes the whole way
        tokens = torch.where(greedy, logits.argmax(-1), _draw(logits - top, draws, _kept(logits, draws)))
    elif greedy.all():
        tokens = logits.argmax(-1)
    else:
        tokens = _draw(logits - top, draws, _kept_where_asked(logits, draws))
        if greedy.any():
            tokens[greedy] = logits[greedy].argmax(-1)
    return torch.where(top[:, 0].isfinite(), tokens, -1)


def _draw(x: Tensor, draws: Draws, kept: Tensor | None) -> Tensor:
    """Draw from the softmax over the kept tokens (B, V), None = all; x, the logits minus their maximum, is changed."""
    x.div_(draws.temperature.clamp(min=_MIN_TEMPERATURE)[:, None])
    if kept is not None:
        x.masked_fill_(~kept | (x < draws.min_p.log()[:, None]), -torch.inf)
    return _invert(x.exp_(), draws.uniforms)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first token (B,) whose cumulative weight is above the uniform's share of the total.

    The sums run over blocks first, and then inside of one block, in fp64: one pass over the weights (B, V).
    """
    blocks = F.pad(weights, (0, -weights.size(-1) % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    block_sums = blocks.sum(-1).double().cumsum(-1)
    block, rest = _search(block_sums, uniforms[:, None] * block_sums[:, -1:])
    inside = blocks[torch.arange(len(block), device=block.device), block[:, 0]].double().cumsum(-1)
    token, _ = _search(inside, rest)
    return (block * _BLOCK + token)[:, 0]


def _search(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (B, 1) of the first cumulative sum above the target, and what of the target is left there."""
    last = sums[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(sums, target, right=True).clamp(max=sums.size(-1) - 1)  # NaN is above all
    before = F.pad(sums, (1, 0)).gather(-1, index)
    return index, target - before


def _kept_where_asked(logits: Tensor, draws: Draws) -> Tensor | None:
    """Return what `_kept` does, but compute it only for rows that leave some token out; None if no row does."""
    asked = (draws.temperature > 0) & ((draws.top_k < logits.size(-1)) | (draws.top_p < 1) | (draws.min_p > 0))
    if not asked.any():
        return None
    if asked.all():
        return _kept(logits, draws)
    kept = torch.ones_like(logits, dtype=torch.bool)
    kept[asked] = _kept(logits[asked], _rows(draws, asked))
    return kept


def _kept(logits: Tensor, draws: Draws) -> Tensor:
    """Return which tokens (B, V) top-k, and top-p among these, keep; of equal logits at the limit the first ones."""
    threshold, number = _limits(logits, draws)
    kept = logits >= threshold
    extra = kept.sum(-1) > number[:, 0]
    if logits.is_cuda:
        return kept & ~_surplus(logits, threshold, number)
    if extra.any():
        kept[extra] &= ~_surplus(logits[extra], threshold[extra], number[extra])
    return kept


def _surplus(logits: Tensor, threshold: Tensor, number: Tensor) -> Tensor:
    """Return the tokens (B, V) at the threshold that are more than `number` with those above it."""
    at = logits == threshold
    return at & (at.cumsum(-1) > number - (logits > threshold).sum(-1, keepdim=True))


def _limits(logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the smallest logit (B, 1) that top-k and top-p keep, and how many tokens (B, 1) they keep."""
    vocab_size = logits.size(-1)
    if logits.is_cuda:
        return _limits_within(logits, draws, vocab_size)
    widths = torch.where(draws.top_k < vocab_size, draws.top_k, torch.where(draws.top_p < 1, _NUCLEUS, 1))
    width = min(int(widths.max()), vocab_size)
    threshold, number = _limits_within(logits, draws, width)
    wider = (draws.top_p < 1) & (draws.top_k > width) & (number[:, 0] >= width)
    if width < vocab_size and wider.any():  # a nucleus of more than _NUCLEUS tokens
        threshold[wider], number[wider] = _limits_within(logits[wider], _rows(draws, wider), vocab_size)
    return threshold, number


def _limits_within(logits: Tensor, draws: Draws, width: int) -> tuple[Tensor, Tensor]:
    """Return what `_limits` does, for rows whose tokens are all kept or among the `width` most likely."""
    vocab_size = logits.size(-1)
    top_k = draws.top_k.clamp(max=vocab_size)[:, None]
    largest = logits.topk(width).values
    temperature = draws.temperature.clamp(min=_MIN_TEMPERATURE)[:, None]
    weights = ((largest - largest[:, :1]) / temperature).exp().double()
    weights.masked_fill_(torch.arange(width, device=logits.device) >= top_k, 0)
    total = weights.sum(-1, keepdim=True)
    if width < vocab_size:
        everything = ((logits - largest[:, :1]) / temperature).exp_().sum(-1, keepdim=True).double()
        total = torch.where(top_k > width, everything, total)
    nucleus = (weights.cumsum(-1) - weights < draws.top_p[:, None] * total) & (weights > 0)
    # Top-p keeps one token at least: top_p times the total may round to 0.
    number = torch.where(draws.top_p[:, None] < 1, nucleus.sum(-1, keepdim=True).clamp(min=1), top_k)
    threshold = largest.gather(-1, number.clamp(max=width) - 1)
    return threshold.masked_fill_(number > width, -torch.inf), number


def _rows(draws: Draws, rows: Tensor) -> Draws:
    return Draws(*(column[rows] for column in draws))


def penalise(logits: Tensor, params: SamplingParams, prompt: Tensor, generated: Tensor) -> None:
    """Change a row of logits (V,) in place by the biases and penalties of its request.

    Args:
        prompt: (P,) int64, the prompt's tokens.
        generated: (N,) int64, the tokens after it.
    """
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        logits[list(ids)] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    if params.repetition_penalty != 1:
        seen = torch.cat((prompt, generated)).unique()
        old = logits[seen]
        logits[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    if (params.frequency_penalty or params.presence_penalty) and len(generated):
        ids, counts = generated.unique(return_counts=True)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Return numbers (B,) fp64 in [0, 1), a function of seeds and counters (B,) uint64 alone.

    So a request can be computed anew at any time, and beside any others.

    Source: SplitMix64 (Steele et al., OOPSLA 2014), its finaliser on the seed and again on each step.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seeds + step) + (counters + np.uint64(1)) * step)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))

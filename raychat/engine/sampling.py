"""Sampling: a request's parameters, and the draw of the next tokens of a batch.

Every draw inverts the cumulative distribution in the order of token ids. So a token depends on its own row, its own
parameters and one uniform number, and not on the rows beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raychat.device import to_device

# Bounds on the temperature in fp32. Outside of them, sampling acts like the greedy choice among the largest logits, or
# like a uniform draw.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30
_BLOCK = 128  # tokens whose probabilities are summed at once
_COLUMN = 64  # tokens whose maximum is taken at once
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

    @cached_property
    def changes_logits(self) -> bool:
        """Whether the logits are changed before the temperature."""
        penalties = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return any(penalties) or bool(self.logit_bias)

    @cached_property
    def columns(self) -> tuple[float, ...]:
        """Temperature to min_p as numbers of a table for `Draws.of`."""
        positive = min(max(self.temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
        temperature = 0.0 if self.temperature == 0 else positive
        return temperature, min(self.top_k or 2**31, 2**31), self.top_p or 1.0, self.min_p or 0.0


def _is_whole(number: float, least: int, end: float = math.inf) -> bool:
    return isinstance(number, int) and least <= number < end


DEFAULT = SamplingParams()


class Draws(NamedTuple):
    """What the draw of one token of each of B rows needs besides the logits."""

    forced: Tensor  # (B,) int64, the token that is taken whatever the logits are; -1 = none
    uniforms: Tensor  # (B,) fp64 in [0, 1), the only source of randomness
    temperature: Tensor  # (B,) fp32, 0 = the most likely token
    top_k: Tensor  # (B,) int64; V or more = all
    top_p: Tensor  # (B,) fp64; 1 = all
    min_p: Tensor  # (B,) fp32; 0 = all

    @classmethod
    def one(cls, uniforms: Tensor, params: SamplingParams) -> Self:
        """Return the draws of rows that all have the same parameters."""
        row = torch.from_numpy(parameters([params])).expand(uniforms.size(0), -1)
        none = torch.full_like(uniforms, -1)
        return cls.of(torch.column_stack((none, uniforms, row)))

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Read the columns of a table (B, 6) fp64: forced tokens, uniforms, and what `parameters` writes."""
        forced, uniforms, temperature, top_k, top_p, min_p = table.unbind(-1)
        return cls(forced.long(), uniforms, temperature.float(), top_k.long(), top_p, min_p.float())


def parameters(requests: list[SamplingParams]) -> np.ndarray:
    """Return the sampling parameters (B, 4) fp64 of requests as columns for `Draws.of`: temperature to min_p."""
    return np.array([p.columns for p in requests], dtype=np.float64).reshape(-1, 4)


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """Draw a token (B,) int64 for every row of logits (B, V) fp32, where -inf means that a token is impossible.

    A row of NaN, with +inf or with nothing but -inf gives -1. On a CPU only rows with top-k, top-p or min-p pay for it.

    Source: Holtzman et al., arXiv:1904.09751 (top-p).
    """
    top = logits.amax(-1, keepdim=True)
    if logits.is_cuda:  # without waiting for the device: every row goes the whole way
        drawn = _draw(logits - top, draws, _kept(logits, draws))
        tokens = torch.where(draws.temperature == 0, logits.argmax(-1), drawn)
    else:
        tokens = _sample_by_need(logits, top, draws)
    tokens = torch.where(top[:, 0].isfinite(), tokens, -1)
    return torch.where(draws.forced < 0, tokens, draws.forced)


def _sample_by_need(logits: Tensor, top: Tensor, draws: Draws) -> Tensor:
    """Draw a token (B,) for every row, with as little work as its parameters need; broken rows give any number.

    Args:
        top: (B, 1), the largest logit of each row.
    """
    tokens = torch.full((logits.size(0),), -1)
    temperature, top_k, top_p = draws.temperature.numpy(), draws.top_k.numpy(), draws.top_p.numpy()
    greedy = temperature == 0
    limited = ~greedy & ((top_k < logits.size(-1)) | (top_p < 1))

    def fill(rows: np.ndarray, choose: Callable[[Tensor, Tensor, Draws], Tensor]) -> None:
        if rows.all():
            tokens.copy_(choose(logits, top, draws))
        elif rows.any():
            index = torch.from_numpy(rows)
            tokens[index] = choose(logits[index], top[index], Draws(*(column[index] for column in draws)))

    fill(greedy, lambda x, t, d: _largest(x, 1).indices[:, 0])
    fill(~greedy & ~limited, lambda x, t, d: _draw(x - t, d, None))
    fill(limited, lambda x, t, d: _draw_among_largest(x, d))
    fill(limited & (tokens < 0).numpy(), lambda x, t, d: _draw(x - t, d, _kept(x, d)))
    return tokens


def _draw_among_largest(logits: Tensor, draws: Draws) -> Tensor:
    """Draw a token (B,) where top-k and top-p keep a few of the most likely ones; -1 where they may keep others.

    These are a nucleus of more than _NUCLEUS tokens, and a limit between equal logits.
    """
    limits = torch.where(draws.top_k < logits.size(-1), draws.top_k, _NUCLEUS)
    width = min(int(limits.max()) + 1, logits.size(-1))  # one more shows whether the limit is between equal logits
    values, ids = _largest(logits, width)
    weights, number = _nucleus(logits, values, draws)
    rank = torch.arange(width)
    weights.masked_fill_((rank >= number) | (weights < draws.min_p[:, None]), 0)
    ids, order = ids.sort(-1)
    token = ids.gather(-1, _search(*_shares(weights.gather(-1, order), draws.uniforms))[0])
    beyond = values.gather(-1, number.clamp(max=width - 1))
    exact = (number == logits.size(-1)) | ((number < width) & (beyond < values.gather(-1, number.clamp(max=width) - 1)))
    return torch.where(exact, token, -1)[:, 0]


def _largest(logits: Tensor, width: int) -> torch.return_types.topk:
    """Return the `width` largest logits of every row and their ids, (B, width) each, as `topk` does."""
    size = logits.size(-1) // _COLUMN
    if size * _COLUMN != logits.size(-1) or size < 4 * width:
        return logits.topk(width)
    # The largest are in those columns of (B, _COLUMN, V / _COLUMN) whose maxima are the largest.
    table = logits.unflatten(-1, (_COLUMN, size))
    columns = table.amax(-2).topk(width, sorted=False).indices
    values, at = table.gather(-1, columns.unsqueeze(-2).expand(-1, _COLUMN, -1)).flatten(-2).topk(width)
    ids = at // width * size + columns.gather(-1, at % width)
    return torch.return_types.topk((values, ids))


def _draw(x: Tensor, draws: Draws, kept: Tensor | None) -> Tensor:
    """Draw from the softmax over the kept tokens (B, V), None = all; x, the logits minus their maximum, is changed."""
    x.div_(draws.temperature.clamp(min=_MIN_TEMPERATURE)[:, None])
    if kept is not None:
        x.masked_fill_(~kept, -torch.inf)
    if x.is_cuda or draws.min_p.any():
        x.masked_fill_(x < draws.min_p.log()[:, None], -torch.inf)
    return _invert(x.exp_(), draws.uniforms)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first token (B,) whose cumulative weight is above the uniform's share of the total.

    The sums run over blocks first, and then inside of one block, in fp64: one pass over the weights (B, V).
    """
    missing = -weights.size(-1) % _BLOCK
    blocks = (F.pad(weights, (0, missing)) if missing else weights).unflatten(-1, (-1, _BLOCK))
    block, rest = _search(*_shares(blocks.sum(-1).double(), uniforms))
    inside = blocks[torch.arange(len(block), device=block.device), block[:, 0]].double().cumsum(-1)
    token, _ = _search(inside, rest)
    return (block * _BLOCK + token)[:, 0]


def _shares(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return cumulative weights (B, N) fp64, and each row's uniform share of its total (B, 1)."""
    sums = weights.cumsum(-1)
    return sums, uniforms[:, None] * sums[:, -1:]


def _search(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (B, 1) of the first cumulative sum above the target, and what of the target is left there."""
    last = sums[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(sums, target, right=True).clamp(max=sums.size(-1) - 1)  # NaN is above all
    before = F.pad(sums, (1, 0)).gather(-1, index)
    return index, target - before


def _kept(logits: Tensor, draws: Draws) -> Tensor:
    """Return which tokens (B, V) top-k, and top-p among these, keep; of equal logits at the limit the first ones."""
    largest = logits.sort(-1, descending=True).values
    _, number = _nucleus(logits, largest, draws)
    threshold = largest.gather(-1, number - 1)
    at = logits == threshold
    above = logits > threshold
    return above | (at & (at.cumsum(-1) <= number - above.sum(-1, keepdim=True)))


def _nucleus(logits: Tensor, largest: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the weights (B, W) fp64 of the most likely tokens, and how many of these (B, 1) top-k and top-p keep.

    Args:
        logits: (B, V).
        largest: (B, W), the largest of them, in descending order. If top-p keeps more, the number is W.
    """
    vocab_size, width = logits.size(-1), largest.size(-1)
    top_k, top_p = draws.top_k.clamp(max=vocab_size)[:, None], draws.top_p[:, None]
    temperature = draws.temperature.clamp(min=_MIN_TEMPERATURE)[:, None]
    weights = ((largest - largest[:, :1]) / temperature).exp().double()
    weights.masked_fill_(torch.arange(width, device=logits.device) >= top_k, 0)
    if not (logits.is_cuda or (top_p < 1).any()):
        return weights, top_k
    total = weights.sum(-1, keepdim=True)
    if width < vocab_size and (top_k > width).any():
        everything = ((logits - largest[:, :1]) / temperature).exp_().sum(-1, keepdim=True).double()
        total = torch.where(top_k > width, everything, total)
    nucleus = (weights.cumsum(-1) - weights < top_p * total) & (weights > 0)
    # Top-p keeps one token at least: top_p times the total may round to 0.
    return weights, torch.where(top_p < 1, nucleus.sum(-1, keepdim=True).clamp(min=1), top_k)


def penalise(logits: Tensor, params: SamplingParams, prompt: Tensor, generated: Tensor) -> None:
    """Change a row of logits (V,) in place by the biases and penalties of its request, without waiting for the device.

    prompt (P,) and generated (N,): the prompt's tokens, int64, and those after it.
    """
    if params.logit_bias:
        ids, biases = (to_device(np.array(column), logits.device) for column in zip(*params.logit_bias, strict=True))
        logits.index_add_(0, ids, biases.to(logits.dtype))
    if params.repetition_penalty != 1:
        seen = torch.cat((prompt, generated))
        old = logits[seen]  # read before any is changed: a token seen twice gets the same value twice
        logits[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        counts = torch.zeros_like(logits).index_add_(0, generated, torch.ones_like(generated, dtype=logits.dtype))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


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

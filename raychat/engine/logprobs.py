"""Log-probabilities of tokens and of their alternatives, as a table that is read from the device at once."""

import torch
from torch import Tensor

from raychat.engine.request import Alternatives


def logprobs_table(logits: Tensor, targets: Tensor, number: int) -> Tensor:
    """Return how likely targets (R,) are under logits (R, V), and the `number` likeliest tokens: (R, 1 + 2n) fp64."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(min(number, logits.size(-1)))
    return torch.cat((logprobs.gather(-1, targets[:, None]).double(), top.values.double(), top.indices.double()), -1)


def score(row: list[float]) -> tuple[float, Alternatives]:
    """Read a row of `logprobs_table`: the token's log-probability, and the alternatives."""
    logprob, *rest = row
    number = len(rest) // 2
    return logprob, tuple(zip(map(int, rest[number:]), rest[:number], strict=True))

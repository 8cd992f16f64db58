"""Algorithms of reinforcement as values: from the rewards of a group to the weights of its sampled tokens.

All of them minimise `sum weights * nll`, since each one's gradient is that of a weight, held constant, times the nll of
a token. With ratio = (probability by the learner) / (probability by the weights that sampled the token):

    weight = (advantage * factor(ratio, advantage) + kl * (ratio to the parent - 1)) / divisor

A token that the current weights sampled has ratio 1 and factor 1. Probabilities are the model's own, of its full
distribution at temperature 1, even where sampling was cut to top-k.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CAP = 2.0  # of the ratios
TRUSTED = 8.0  # beyond this ratio or its inverse, a token says nothing about the current weights

Tokens = NDArray[np.float64]  # (N,): a number for each token of a completion


def centred(rewards: Sequence[float]) -> list[float]:
    """Return reward - mean reward of the group for each answer; exactly 0 where all rewards are equal.

    Source: REINFORCE (Williams 1992), with the group's mean as baseline.

    >>> centred([1.0, 0.0, 0.0, 1.0]), centred([0.1, 0.1, 0.1])
    ([0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0])
    """
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def standardised(rewards: Sequence[float]) -> list[float]:
    """Return `centred` rewards divided by their standard deviation. Source: GRPO, arXiv:2402.03300, section 4.1.2.

    >>> standardised([1.0, 0.0, 0.0, 1.0])
    [1.0, -1.0, -1.0, 1.0]
    """
    advantages = centred(rewards)
    deviation = math.sqrt(sum(advantage**2 for advantage in advantages) / len(advantages))
    return [advantage / (deviation or 1.0) for advantage in advantages]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Return reward - mean reward of the group's other answers. Source: RLOO, arXiv:2402.14740, section 3.2.

    >>> leave_one_out([1.0, 0.0, 0.5])
    [0.75, -0.75, 0.0]
    """
    return [advantage * len(rewards) / (len(rewards) - 1) for advantage in centred(rewards)]


def by_tokens(lengths: Sequence[int], max_new_tokens: int) -> list[float]:
    """Divide by the sampled tokens of the whole step: all tokens count alike. Source: DAPO, arXiv:2503.14476, eq. 8."""
    return [float(sum(lengths))] * len(lengths)


def by_answers(lengths: Sequence[int], max_new_tokens: int) -> list[float]:
    """Divide by the answer's tokens and by the answers: all answers count alike. Source: GRPO, eq. 3."""
    return [float(length * len(lengths)) for length in lengths]


def by_constant(lengths: Sequence[int], max_new_tokens: int) -> list[float]:
    """Divide by the most tokens that the step's answers can have. Source: Dr. GRPO, arXiv:2503.20783, section 3.2."""
    return [float(max_new_tokens * len(lengths))] * len(lengths)


def truncated(ratio: Tokens, advantage: float) -> Tokens:
    """Return importance weights of at most CAP. Source: truncated importance sampling (IMPALA, arXiv:1802.01561)."""
    return np.minimum(ratio, CAP)


def clipped(ratio: Tokens, advantage: float, *, low: float, high: float) -> Tokens:
    """Return the ratios, 0 where the policy has moved beyond 1 - low or 1 + high in the advantage's direction.

    It is the gradient of PPO's objective, min(ratio * A, clip(ratio, 1 - low, 1 + high) * A), with `truncated` ratios
    where that does not bound them. Source: PPO, arXiv:1707.06347, eq. 7.
    """
    beyond = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    return np.where(beyond, 0.0, truncated(ratio, advantage))


class Algorithm(NamedTuple):
    """What a step's rewards do to its tokens."""

    advantages: Callable[[Sequence[float]], list[float]] = centred  # of a group's rewards
    divisors: Callable[[Sequence[int], int], list[float]] = by_tokens  # of the step's answers, by their lengths
    factor: Callable[[Tokens, float], Tokens] = truncated  # of stale tokens
    kl: float = 0.0  # weight of the KL divergence from the parent
    replaces: bool = False  # ask further questions in place of those whose answers all earn the same


REINFORCE = Algorithm()
ALGORITHMS = {
    "reinforce": REINFORCE,
    "grpo": Algorithm(standardised, by_answers, partial(clipped, low=0.2, high=0.2)),
    "dr-grpo": Algorithm(centred, by_constant, partial(clipped, low=0.2, high=0.2)),
    "rloo": Algorithm(leave_one_out),
    "dapo": Algorithm(standardised, by_tokens, partial(clipped, low=0.2, high=0.28), replaces=True),
}


def find_algorithm(name: str, kl: float = 0.0) -> Algorithm:
    """Return an algorithm by its name, with a weight of the KL divergence. Raises ValueError where there is none."""
    if name not in ALGORITHMS:
        raise ValueError(f"no algorithm is called {name!r}; expected one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]._replace(kl=kl)


def token_weights(
    algorithm: Algorithm,
    advantage: float,
    divisor: float,
    sampled: Sequence[bool],
    *,
    ratio: Tokens | None = None,
    parent_ratio: Tokens | None = None,
) -> Tokens:
    """Return the weight of each token of an answer, 0 where it was not sampled.

    Args:
        ratio: probability by the learner / by the weights that sampled the token; None = 1.
        parent_ratio: probability by the parent / by the learner; None where the algorithm has no KL term.
    """
    weights = np.full(len(sampled), advantage / divisor)
    if ratio is not None:
        trusted = (ratio <= TRUSTED) & (ratio >= 1 / TRUSTED)
        weights *= np.where(trusted, algorithm.factor(ratio, advantage), 0.0)
    if parent_ratio is not None:
        # The penalty's estimator is r - log r - 1 (Schulman 2020, "k3") with r = parent_ratio. By the learner's log p,
        # its gradient is 1 - r, and the loss is a weight times -log p.
        weights += algorithm.kl * (parent_ratio - 1) / divisor
    return np.where(sampled, weights, 0.0)

"""From places to questions, and from their rollouts to weighted batches and figures."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from raychat.data.batches import Batch
from raychat.evals.generate import Group, Question, Rollout
from raychat.intervals import draws_of_mean, interval
from raychat.model.loss import IGNORE
from raychat.rl.algorithms import Algorithm, Tokens, token_weights
from raychat.tasks import Problem
from raychat.train.loop import Nll
from raychat.train.stage import Metrics


def question_at(problems: Sequence[Problem], place: int, *, samples: int, seed: int) -> Question:
    """Return the question at a place: the problems in a new order every epoch, every answer with a seed of its own."""
    epoch, i = divmod(place, len(problems))
    order = np.random.default_rng((seed, epoch)).permutation(len(problems))
    return Question(problems[int(order[i])], tuple(_seed(seed, place, sample) for sample in range(samples)))


def _seed(*numbers: int) -> int:
    """Return a seed below 2^63 for these numbers, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


class Weighed(NamedTuple):
    """An answer that is trained on. The weight of its sampled tokens is advantage / divisor where these are fresh."""

    rollout: Rollout
    advantage: float
    divisor: float


def weigh(groups: Sequence[Group], algorithm: Algorithm, max_new_tokens: int) -> list[Weighed]:
    """Weigh the rollouts of a whole step; return them with the longest first.

    Without a KL term rollouts of advantage 0 are dropped, as they have no gradient; their tokens still count.
    """
    advantages = [a for group in groups for a in algorithm.advantages([rollout.reward for rollout in group])]
    rollouts = [rollout for group in groups for rollout in group]
    divisors = algorithm.divisors([sum(rollout.sampled) for rollout in rollouts], max_new_tokens)
    weighed = [
        Weighed(*parts)
        for parts in zip(rollouts, advantages, divisors, strict=True)
        if (parts[1] != 0 or algorithm.kl) and any(parts[0].sampled)
    ]
    return sorted(weighed, key=lambda weighed: -_length(weighed.rollout))


def weights_of(
    weighed: Sequence[Weighed],
    algorithm: Algorithm,
    learner: Sequence[Tokens] | None = None,
    parent: Sequence[Tokens] | None = None,
) -> list[Tokens]:
    """Return the weights of each rollout's tokens.

    Args:
        learner: log-probabilities of the tokens by the weights that are trained; None = the rollouts' own.
        parent: the same by the parent, for the KL term; None = there is none.
    """
    weights = []
    for i, (rollout, advantage, divisor) in enumerate(weighed):
        sampler = np.array(rollout.logprobs)
        now = sampler if learner is None else learner[i]
        ratio = None if learner is None else np.exp(now - sampler)
        to_parent = None if parent is None else np.exp(parent[i] - now)
        weights.append(
            token_weights(algorithm, advantage, divisor, rollout.sampled, ratio=ratio, parent_ratio=to_parent)
        )
    return weights


class Padding(NamedTuple):
    """How rollouts become micro-batches."""

    pad: int  # token id after the end of a rollout
    device_tokens: int  # B * T of a micro-batch at most, unless a single rollout is longer
    multiple: int  # T is rounded up to a multiple of it
    device: torch.device


def to_batches(rollouts: Sequence[Rollout], weights: Sequence[Tokens], padding: Padding) -> Iterator[Batch]:
    """Yield micro-batches of rollouts, each padded to its longest.

    Args:
        rollouts: the longest first, as `weigh` returns them.
        weights: of the tokens of each completion.
    """
    pairs = list(zip(rollouts, weights, strict=True))
    while pairs:
        T = -(-_length(pairs[0][0]) // padding.multiple) * padding.multiple
        height = max(1, padding.device_tokens // T)
        rows, pairs = pairs[:height], pairs[height:]
        inputs = torch.full((len(rows), T), padding.pad)
        targets = torch.full((len(rows), T), IGNORE)
        row_weights = torch.zeros(len(rows), T)
        for row, (rollout, of_tokens) in enumerate(rows):
            tokens = torch.tensor(rollout.prompt + rollout.completion)
            first, stop = len(rollout.prompt) - 1, len(tokens) - 1  # inputs whose targets are the completion
            sampled = torch.tensor(rollout.sampled)
            inputs[row, :stop] = tokens[:-1]
            targets[row, first:stop] = tokens[first + 1 :].masked_fill(~sampled, IGNORE)
            row_weights[row, first:stop] = torch.from_numpy(of_tokens)
        yield Batch(*(tensor.to(padding.device) for tensor in (inputs, targets, row_weights)))


@torch.no_grad()
def logprobs_of(nll: Nll, rollouts: Sequence[Rollout], padding: Padding) -> list[Tokens]:
    """Return the log-probabilities of each rollout's tokens by a model; 0 where a token was not sampled.

    Args:
        nll: the model's.
        rollouts: the longest first.
    """
    found: list[Tokens] = []
    for batch in to_batches(rollouts, [np.ones(len(rollout.completion)) for rollout in rollouts], padding):
        for row in (-nll(batch.inputs, batch.targets)).double().cpu().numpy():
            rollout = rollouts[len(found)]
            first = len(rollout.prompt) - 1
            found.append(row[first : first + len(rollout.completion)])
    return found


def _length(rollout: Rollout) -> int:
    """Return the number of inputs: the last token is a target only."""
    return len(rollout.prompt) + len(rollout.completion) - 1


def has_signal(group: Group) -> bool:
    """Tell whether a group's rewards differ: else it teaches nothing."""
    return len({rollout.reward for rollout in group}) > 1


def figures(groups: Sequence[Group], number: int) -> Metrics:
    """Summarise the rollouts of step `number` for its row of metrics."""
    rollouts = [rollout for group in groups for rollout in group]
    best = [max(rollout.reward for rollout in group) for group in groups]
    signal = [has_signal(group) for group in groups]
    found = {
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        "signal": sum(signal) / len(signal),  # share of the groups
        "completion_tokens": sum(len(rollout.completion) for rollout in rollouts) / len(rollouts),
        "pass_at_k": sum(best) / len(best),  # of the best of a question's answers, the mean reward
    }
    surprises = [-p for r in rollouts for p, sampled in zip(r.logprobs, r.sampled, strict=False) if sampled]
    if surprises:
        found["entropy"] = sum(surprises) / len(surprises)  # nats per sampled token
    ages = [number - version for rollout in rollouts for version in rollout.versions]
    if ages:  # of the weights that sampled a token, in steps
        found |= {"staleness": sum(ages) / len(ages), "staleness_max": max(ages)}
    return found


def divergences(
    rollouts: Sequence[Rollout], number: int, learner: Sequence[Tokens], parent: Sequence[Tokens] | None
) -> dict[str, list[float]]:
    """Return what a scoring pass says of each sampled token of step `number`.

    `mismatch` is |log p by the learner - log p by its sampler| where both have the same weights: the rounding of one
    model in two shapes of batch. `ratio` is the learner's probability over the sampler's where the weights are older.
    `kl` is an estimate of the divergence from the parent, never negative (Schulman 2020, "k3").
    """
    found: dict[str, list[float]] = {"mismatch": [], "ratio": [], "kl": []}
    for i, rollout in enumerate(rollouts):
        sampled, difference = np.array(rollout.sampled), learner[i] - np.array(rollout.logprobs)
        fresh = np.array(rollout.versions) == number if len(rollout.versions) else np.ones_like(sampled)
        found["mismatch"] += np.abs(difference[sampled & fresh]).tolist()
        found["ratio"] += np.exp(difference[sampled & ~fresh]).tolist()
        if parent is not None:
            log_ratio = (parent[i] - learner[i])[sampled]
            found["kl"] += (np.exp(log_ratio) - log_ratio - 1).tolist()
    return found


def means(parts: Sequence[Mapping[str, Sequence[float]]]) -> Metrics:
    """Return the mean of each figure over the parts of all workers, where there are any numbers.

    >>> means([{"kl": [1.0, 2.0], "ratio": []}, {"kl": [6.0], "ratio": []}])
    {'kl': 3.0}
    """
    values = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}


def speed(groups: Sequence[Group], step_s: float, rollout_s: float) -> Metrics:
    """Return the speed of a step: seconds waited for rollouts, and their share of the step's; tokens a second.

    Args:
        groups: whose tokens count.
        step_s: from one step's rollouts to the next's.
    """
    tokens = sum(len(rollout.completion) for group in groups for rollout in group)
    step_s = max(step_s, 1e-9)
    waited = {"rollout_s": round(rollout_s, 3), "waiting": round(rollout_s / step_s, 3)}
    return {**waited, "tok_per_s": round(tokens / step_s, 1)}


def reward_trend(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the rewards of the first and of the last fifth of a stage's steps, at least one step each.

    >>> reward_trend([{"step": s, "reward": s} for s in range(1, 11)] + [{"step": 10, "val_reward": 0}])
    {'reward_first': [1, 2], 'reward_last': [9, 10]}
    """
    all_rewards = [row["reward"] for row in rows if "reward" in row]
    n = max(1, len(all_rewards) // 5)
    return {"reward_first": all_rewards[:n], "reward_last": all_rewards[-n:]}


def spread(outcomes: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return `outcomes`, and the `interval` of the mean of those that are at least two."""
    draws = {name: draws_of_mean(found) for name, found in outcomes.items() if len(found) > 1}
    return {"outcomes": dict(outcomes), "interval": {name: list(interval(drawn)) for name, drawn in draws.items()}}

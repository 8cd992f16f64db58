"""From the number of a step to its questions, and from their rollouts to weighted batches."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raychat.data.batches import Batch
from raychat.evals.generate import Group, Question, Rollout
from raychat.model.loss import IGNORE
from raychat.tasks import Problem
from raychat.train.stage import Metrics


def questions_of(
    problems: Sequence[Problem], step: int, *, questions_per_step: int, samples: int, seed: int
) -> list[Question]:
    """Return the questions of a step: the problems in a new order every epoch, every answer with a seed of its own."""
    questions = []
    for place in range(step * questions_per_step, (step + 1) * questions_per_step):
        epoch, i = divmod(place, len(problems))
        order = np.random.default_rng((seed, epoch)).permutation(len(problems))
        seeds = tuple(_seed(seed, place, sample) for sample in range(samples))
        questions.append(Question(problems[int(order[i])], seeds))
    return questions


def _seed(*numbers: int) -> int:
    """Return a seed below 2^63 for these numbers, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def advantages(rewards: Sequence[float]) -> list[float]:
    """Return reward - mean reward for every answer of a group; exactly 0 where all rewards are equal.

    >>> advantages([1.0, 0.0, 0.0, 1.0]), advantages([0.1, 0.1, 0.1])
    ([0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0])
    """
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def weigh(groups: Sequence[Group]) -> list[tuple[Rollout, float]]:
    """Weigh the rollouts of a whole step; return each with the weight of its sampled tokens, the longest first.

    Weight = advantage / sampled tokens of the step. Rollouts of weight 0 are dropped, as they have no gradient; their
    tokens still count.
    """
    num_valid = sum(sum(rollout.sampled) for group in groups for rollout in group)
    weighed = [
        (rollout, advantage / num_valid)
        for group in groups
        for rollout, advantage in zip(group, advantages([rollout.reward for rollout in group]), strict=True)
        if advantage != 0 and any(rollout.sampled)
    ]
    return sorted(weighed, key=lambda pair: -_length(pair[0]))


def to_batches(
    weighed: Sequence[tuple[Rollout, float]], *, pad: int, device_tokens: int, multiple: int, device: torch.device
) -> Iterator[Batch]:
    """Yield micro-batches of rollouts, each padded to its longest.

    Args:
        weighed: longest first, as `weigh` returns them.
        pad: token id after the end of a rollout.
        device_tokens: B * T of a micro-batch at most, unless a single rollout is longer.
        multiple: T is rounded up to a multiple of it.
    """
    i = 0
    while i < len(weighed):
        T = -(-_length(weighed[i][0]) // multiple) * multiple
        rows = weighed[i : i + max(1, device_tokens // T)]
        i += len(rows)
        inputs = torch.full((len(rows), T), pad)
        targets = torch.full((len(rows), T), IGNORE)
        weights = torch.zeros(len(rows), T)
        for row, (rollout, weight) in enumerate(rows):
            tokens = torch.tensor(rollout.prompt + rollout.completion)
            first, stop = len(rollout.prompt) - 1, len(tokens) - 1  # inputs whose targets are the completion
            sampled = torch.tensor(rollout.sampled)
            inputs[row, :stop] = tokens[:-1]
            targets[row, first:stop] = tokens[first + 1 :].masked_fill(~sampled, IGNORE)
            weights[row, first:stop] = sampled * weight
        yield Batch(inputs.to(device), targets.to(device), weights.to(device))


def _length(rollout: Rollout) -> int:
    """Return the number of inputs: the last token is a target only."""
    return len(rollout.prompt) + len(rollout.completion) - 1


def figures(groups: Sequence[Group]) -> Metrics:
    """Summarise a step's rollouts for its row of metrics."""
    rollouts = [rollout for group in groups for rollout in group]
    signal = [len({rollout.reward for rollout in group}) > 1 for group in groups]
    return {
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        "signal": sum(signal) / len(signal),  # share of the groups with different rewards: the others teach nothing
        "completion_tokens": sum(len(rollout.completion) for rollout in rollouts) / len(rollouts),
    }


def reward_trend(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """Return the mean reward over the first and the last fifth of a stage's steps, at least one step each.

    >>> reward_trend([{"step": s, "reward": s} for s in range(1, 11)] + [{"step": 10, "val_reward": 0}])
    {'reward_first': 1.5, 'reward_last': 9.5}
    """
    all_rewards = [row["reward"] for row in rows if "reward" in row]
    n = max(1, len(all_rewards) // 5)
    return {"reward_first": sum(all_rewards[:n]) / n, "reward_last": sum(all_rewards[-n:]) / n}

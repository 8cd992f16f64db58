"""Algorithms: the gradient of each against its paper's objective, written out token by token; caps, masks, errors."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import tiny_rl
import torch
from torch import Tensor

from raychat.evals.generate import Group, Rollout
from raychat.model.base import Model
from raychat.rl.algorithms import ALGORITHMS, CAP, TRUSTED, clipped, find_algorithm, token_weights, truncated
from raychat.rl.step import Padding, divergences, logprobs_of, to_batches, weigh, weights_of
from raychat.train.loop import accumulate

MAX_NEW_TOKENS = 16
PADDING = Padding(pad=0, device_tokens=30, multiple=4, device=torch.device("cpu"))


def moved(size: float, seed: int) -> Model:
    """The tiny model a few updates away."""
    model, generator = tiny_rl.model(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return model


def logprobs(model: Model, rollout: Rollout) -> Tensor:
    """The log-probabilities (N,) of a completion's tokens, each from its own unpadded context."""
    found = []
    for i, token in enumerate(rollout.completion):
        logits = model(torch.tensor([rollout.prompt + rollout.completion[:i]]))[0, -1]
        found.append(torch.log_softmax(logits, -1)[token])
    return torch.stack(found)


PARENT = moved(0.02, seed=6)
# Of the learner's probabilities to the sampler's: clipped by all, by some and by none, capped, not to be trusted. Where
# the advantage is negative, PPO has no cap, so there is none above it.
RATIOS = {True: [1.1, 1.25, 1.4, 0.5, 2.5, 9.0, 1.0], False: [0.9, 0.7, 1.3, 1.7, 0.85, 0.1, 1.0]}


def rollout(prompt: list[int], completion: list[int], forced: int, reward: float, good: bool = True) -> Rollout:
    """An answer whose first tokens after the first one, `forced` of them, came from a tool."""
    sampled = [not 1 <= i <= forced for i in range(len(completion))]
    without = Rollout(prompt, completion, sampled, [], "", reward)
    with torch.no_grad():
        ratios = torch.tensor(RATIOS[good][: len(completion)])
        return without._replace(logprobs=(logprobs(tiny_rl.model(), without) - ratios.log()).tolist())


GROUPS: list[Group] = [
    [
        rollout([1, 2, 3], [5, 6, 7], 0, 1.0),
        rollout([1, 2, 3], [9, 3, 8, 8], 2, 0.0, good=False),
        rollout([1, 2, 3], [4], 0, 0.25, good=False),
    ],
    [
        rollout([6, 5, 4, 3, 2], [8, 100, 101, 2, 3, 4, 5], 2, 0.5),
        rollout([6, 5, 4, 3, 2], [7, 200, 17, 27, 37, 47, 57], 0, 0.0, good=False),
    ],
    [rollout([1, 2], [1, 2], 0, 1.0), rollout([1, 2], [3, 4, 5], 0, 1.0)],  # no signal
]


# --- the objectives, to be minimised, as the papers write them: of ratios, advantages and lengths


def surrogate(low: float, high: float) -> Callable[[Tensor, float], Tensor]:
    """PPO's clipped objective of each token."""

    def of(ratio: Tensor, advantage: float) -> Tensor:
        return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)

    return of


def weighted(ratio: Tensor, advantage: float) -> Tensor:
    """Policy gradient with truncated importance weights: the gradient of ratio is ratio * that of log p."""
    return ratio.detach().clamp(max=2.0) * (ratio / ratio.detach()).log() * advantage


def objective(name: str, model: Model, kl: float) -> Tensor:
    total, num_answers = torch.zeros(()), sum(map(len, GROUPS))
    num_tokens = sum(sum(r.sampled) for group in GROUPS for r in group)
    for group in GROUPS:
        rewards = torch.tensor([r.reward for r in group], dtype=torch.float64)
        for i, r in enumerate(group):
            advantage = float(rewards[i] - rewards.mean())
            if name in ("grpo", "dapo"):
                advantage /= float(rewards.std(correction=0)) or 1.0
            if name == "rloo":
                advantage = float(rewards[i] - (rewards.sum() - rewards[i]) / (len(group) - 1))
            logp = logprobs(model, r)
            ratio = (logp - torch.tensor(r.logprobs)).exp()
            per_token = {
                "reinforce": weighted,
                "rloo": weighted,
                "grpo": surrogate(0.2, 0.2),
                "dr-grpo": surrogate(0.2, 0.2),
                "dapo": surrogate(0.2, 0.28),
            }[name](ratio, advantage)
            trusted = (ratio.detach() <= TRUSTED) & (ratio.detach() >= 1 / TRUSTED)
            per_token = per_token * trusted
            with torch.no_grad():
                parent = logprobs(PARENT, r)
            per_token = per_token - kl * ((parent - logp).exp() - (parent - logp) - 1)
            divisor = {
                "grpo": num_answers * sum(r.sampled),
                "dr-grpo": num_answers * MAX_NEW_TOKENS,
            }.get(name, num_tokens)
            total = total - (per_token * torch.tensor(r.sampled)).sum() / divisor
    return total


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradient_is_that_of_the_papers_objective(name: str, kl: float) -> None:
    model, algorithm = tiny_rl.model(), find_algorithm(name, kl)
    objective(name, model, kl).backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    weighed = weigh(GROUPS, algorithm, MAX_NEW_TOKENS)
    rollouts = [w.rollout for w in weighed]
    learner, parent = (logprobs_of(m.nll, rollouts, PADDING) for m in (model, PARENT))
    weights = weights_of(weighed, algorithm, learner, parent if kl else None)
    made = list(to_batches(rollouts, weights, PADDING))
    assert len(made) > 1
    accumulate(model.nll, made, model.device)
    got = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    # fp32 sums in another order, and exp of differences of logs that are rounded to some 1e-7
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_ratios_are_capped_and_tokens_far_off_are_masked() -> None:
    ratio = np.array([1.0, 1.5, CAP + 1, TRUSTED + 1, 0.5, 1 / TRUSTED - 0.01])
    for name in ("reinforce", "rloo"):
        got = token_weights(find_algorithm(name), 0.5, 10.0, [True] * 6, ratio=ratio)
        assert got == pytest.approx([0.05, 0.075, 0.1, 0.0, 0.025, 0.0])
    assert truncated(ratio, -1.0)[3] == CAP
    assert clipped(ratio, -1.0, low=0.2, high=0.2).tolist() == [1.0, 1.5, CAP, CAP, 0.0, 0.0]
    assert clipped(ratio, 1.0, low=0.2, high=0.6).tolist() == [1.0, 1.5, 0.0, 0.0, 0.5, 1 / TRUSTED - 0.01]


def test_fresh_tokens_weigh_alike_in_every_algorithm_of_one_divisor() -> None:
    """With ratio 1 neither caps nor clips change anything."""
    for algorithm in ALGORITHMS.values():
        ones = np.ones(3)
        with_ratio = token_weights(algorithm, -0.5, 4.0, [True, False, True], ratio=ones)
        assert with_ratio.tolist() == token_weights(algorithm, -0.5, 4.0, [True, False, True]).tolist()
        assert with_ratio.tolist() == [-0.125, 0.0, -0.125]


def test_penalty_leads_back_to_the_parent() -> None:
    """What the parent finds likelier than the learner gets a positive weight, also without any reward."""
    weights = token_weights(
        find_algorithm("grpo", kl=0.1), 0.0, 2.0, [True, True, False], parent_ratio=np.array([3.0, 0.5, 9.0])
    )
    assert weights.tolist() == pytest.approx([0.1, -0.025, 0.0])


def test_divergences_tell_fresh_tokens_from_stale_ones() -> None:
    r = Rollout([1], [2, 3, 4, 5], [True, True, False, True], [-1.0, -2.0, 0.0, -3.0], "", 1.0, [3, 4, 4, 4])
    learner, parent = [np.array([-1.5, -2.25, 0.0, -3.0])], [np.array([-1.5, -2.25, 0.0, -3.0 + math.log(2)])]
    found = divergences([r], 4, learner, parent)
    assert found["mismatch"] == pytest.approx([0.25, 0.0])
    assert found["ratio"] == pytest.approx([math.exp(-0.5)])
    assert found["kl"] == pytest.approx([0.0, 0.0, 1 - math.log(2)])
    unrecorded = divergences([r._replace(versions=())], 4, learner, None)
    assert unrecorded["mismatch"] == pytest.approx([0.5, 0.25, 0.0])
    assert not unrecorded["ratio"]
    assert not unrecorded["kl"]


def test_unknown_algorithm_is_an_error() -> None:
    with pytest.raises(ValueError, match="'ppo'; expected one of reinforce, grpo"):
        find_algorithm("ppo")

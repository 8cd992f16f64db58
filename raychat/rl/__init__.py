"""Reinforcement: REINFORCE with the group's mean reward as baseline, in the one loop of all stages.

Every step asks a few questions, samples a group of answers to each with the current weights, rewards them, and
minimises `sum weights * nll` over the sampled tokens, where weight = (reward - mean reward of the group) / (sampled
tokens of the step, all workers): the gradient is that of the expected reward (Williams 1992). Answers are used once,
for one step, so there is no ratio to clip and no second model. The gradient is that of the model's full distribution
at temperature 1, also where sampling was cut to top-k.

Everything a step does is a function of its number and the weights: which questions, and the seed of every answer.
"""

from raychat.rl.feed import RolloutFeed, RolloutSource
from raychat.rl.sampler import Group, Pool, Question, Rollout, Sampler
from raychat.rl.step import advantages, figures, questions_of, reward_trend, to_batches, weigh

__all__ = [
    "Group",
    "Pool",
    "Question",
    "Rollout",
    "RolloutFeed",
    "RolloutSource",
    "Sampler",
    "advantages",
    "figures",
    "questions_of",
    "reward_trend",
    "to_batches",
    "weigh",
]

"""Reinforcement learning: REINFORCE with the group's mean reward as baseline, in the loop that all stages share.

Every step asks a few questions, samples a group of answers to each with the current weights, rewards them, and
minimises `sum weights * nll` over the sampled tokens, where weight = (reward - mean reward of the group) / (sampled
tokens of the step, all workers). The gradient is that of the expected reward (Williams 1992), of the model's full
distribution at temperature 1, even where sampling was cut to top-k. Answers serve one step only, so there is neither a
ratio to clip nor a second model.

The questions of a step and the seeds of its answers depend on the number of the step alone.
"""

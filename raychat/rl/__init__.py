"""Reinforcement learning in the loop that all stages share: by default REINFORCE with the group's mean as baseline.

Every step asks a few questions, samples a group of answers to each, rewards them, and minimises `sum weights * nll`
over the sampled tokens. The gradient is that of the expected reward (Williams 1992), of the model's full distribution
at temperature 1, even where sampling was cut to top-k. Answers serve one step only.

In step with the learner, answers are of its current weights, and the questions of a step and the seeds of its answers
depend on the number of the step alone. Ahead of it, tokens may be of earlier weights, and their weights say so.
"""

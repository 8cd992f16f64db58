"""Answers to questions, sampled in groups and rewarded: by this process, or by samplers elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor

from raychat import checkpoint
from raychat.chat import template
from raychat.device import device
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals.chat import prompt
from raychat.tasks import Problem


class Question(NamedTuple):
    """A problem to be answered once for every seed."""

    problem: Problem
    seeds: tuple[int, ...]


class Rollout(NamedTuple):
    """One rewarded answer."""

    prompt: list[int]  # token ids, up to <|assistant_start|>
    completion: list[int]  # token ids, the stop token included
    sampled: list[bool]  # for every token of the completion; False = put there by a tool: carries no loss
    logprobs: list[float]  # of the completion's tokens, by the model that wrote it
    reward: float


Group = list[Rollout]  # the answers to one question


class Sampler:
    """Answer questions with one engine and reward the answers. Rollout actors hold one, and workers without actors."""

    def __init__(self, engine: Engine, reward: Callable[[Problem, str], float], params: SamplingParams) -> None:
        self.engine, self._reward, self._params = engine, reward, params

    @classmethod
    def load(
        cls, path: str, reward: Callable[[Problem, str], float], params: SamplingParams, max_sequences: int
    ) -> Self:
        """Make a sampler with the model of a checkpoint, on this process's device."""
        model, _ = checkpoint.load_model(path, device())
        engine = Engine(model.eval(), checkpoint.load_tokenizer(path), max_sequences=max_sequences)
        return cls(engine, reward, params)

    def load_weights(self, weights: Mapping[str, Tensor | np.ndarray]) -> None:
        """Answer with these weights from now on; they are copied."""
        self.engine.load_weights(weights)

    def rollout(self, questions: Sequence[Question]) -> list[Group]:
        """Return a group of answers for each question, one per seed.

        They depend on the questions and the weights only: not on what the sampler did before.
        """
        engine, params = self.engine, self._params
        room = max(engine.context - params.max_new_tokens, engine.context // 2)  # for the prompt, whose tail is kept
        prompts = [prompt(engine.tokenizer, question.problem, room) for question in questions]
        asked = [(i, seed) for i, question in enumerate(questions) for seed in question.seeds]
        completions = engine.generate([prompts[i] for i, _ in asked], [replace(params, seed=seed) for _, seed in asked])
        groups: list[Group] = [[] for _ in questions]
        for (i, _), completion in zip(asked, completions, strict=True):
            text = template.completion_text(engine.tokenizer, completion.ids)
            reward = float(self._reward(questions[i].problem, text))
            groups[i].append(Rollout(prompts[i], completion.ids, completion.sampled, completion.logprobs, reward))
        return groups


class Pool(Protocol):
    """Samplers elsewhere; see raychat/cluster/rollout.py."""

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        """Return for each call what `Sampler.rollout` returns with these weights."""
        ...

"""Samplers make the rollouts: in the train workers, or as a pool in other processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Self

from torch import Tensor

from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals.generate import Group, Question, answer
from raychat.rl.queue import Answers
from raychat.rl.stream import Stream
from raychat.tasks import Problem


class Sampler:
    """An engine with a reward and sampling parameters. Every rollout actor holds one; so do workers without actors."""

    def __init__(self, engine: Engine, reward: Callable[[Problem, str], float], params: SamplingParams) -> None:
        self.engine, self._reward = engine, reward
        self._params = replace(params, logprobs=0)  # of every token that is sampled

    @classmethod
    def load(
        cls, path: str, reward: Callable[[Problem, str], float], params: SamplingParams, max_sequences: int
    ) -> Self:
        """Make a sampler with the model of a checkpoint, on this process's device."""
        return cls(Engine.load(path, max_sequences), reward, params)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy these weights into the model."""
        self.engine.load_weights(weights)

    def rollout(self, questions: Sequence[Question]) -> list[Group]:
        """Return a group of answers for each question, one per seed."""
        return answer(self.engine, self._reward, questions, self._params)

    def stream(self) -> Stream:
        """Return a stream on this sampler's engine."""
        return Stream(self.engine, self._reward, self._params)


class Pool(Protocol):
    """Samplers in other processes; see raychat/cluster/rollout.py."""

    cores: int  # that they keep busy while they sample

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        """Return for each call what `Sampler.rollout` returns with these weights."""
        ...

    def stream(self) -> Answers:
        """Return the samplers' streams as one."""
        ...

"""Answer questions in one continuous batch of an engine: they join at any step, and weights change between steps."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from torch import Tensor

from raychat.engine.engine import Engine
from raychat.engine.request import Completion, Event
from raychat.engine.sampling import SamplingParams
from raychat.evals.generate import Group, Question, Rollout, question_prompt, rewarded
from raychat.tasks import Problem


class _Answer(NamedTuple):
    """An answer in the making."""

    place: int  # of its question
    sample: int
    made: Completion
    versions: list[int]  # of the weights that sampled each token


class Stream:
    """Answers to questions, which are known by their places; the `Answers` of a process that has the engine itself.

    An answer that new weights find unfinished continues with them. Its engine must do nothing else meanwhile.
    """

    def __init__(self, engine: Engine, reward: Callable[[Problem, str], float], params: SamplingParams) -> None:
        self._engine, self._reward, self._params = engine, reward, params
        self._version = 0
        self._questions: dict[int, tuple[Question, list[int]]] = {}  # place -> question and prompt
        self._made: dict[int, dict[int, Rollout]] = {}  # place -> sample -> finished answer
        self._open: dict[int, _Answer] = {}  # by the engine's id

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Continue with these weights, which have learnt from `version` steps."""
        self._engine.load_weights(weights)
        self._version = version

    def ask(self, questions: Mapping[int, Question]) -> None:
        """Begin to answer questions, by their places."""
        for place, question in questions.items():
            prompt = question_prompt(self._engine, question, self._params)
            self._questions[place], self._made[place] = (question, prompt), {}
            for sample, seed in enumerate(question.seeds):
                id = self._engine.add(prompt, replace(self._params, seed=seed))
                self._open[id] = _Answer(place, sample, Completion([], [], [], "length"), [])

    def finished(self, max_steps: int | None = None) -> dict[int, Group]:
        """Run the engine until some question is answered by all its samples; return such questions by their places.

        Args:
            max_steps: engine steps after which there may be none; None = wait.
        """
        groups: dict[int, Group] = {}
        for step in count():
            if groups or not self._open or step == max_steps:
                return groups
            for event in self._engine.step():
                place = self._take(event)
                if event.finish and len(made := self._made[place]) == len(self._questions[place][0].seeds):
                    groups[place] = [made[sample] for sample in range(len(made))]
                    del self._questions[place], self._made[place]
        raise AssertionError("unreachable")

    def _take(self, event: Event) -> int:
        """Add a token to its answer, and reward the answer if that was its last; return the question's place."""
        place, sample, made, versions = self._open[event.id]
        made.ids.append(event.token)
        made.sampled.append(event.sampled)
        if event.logprob is not None:
            made.logprobs.append(event.logprob)
        versions.append(self._version)
        if event.finish:
            del self._open[event.id]
            question, prompt = self._questions[place]
            rollout = rewarded(self._engine.tokenizer, self._reward, question.problem, prompt, made, versions)
            self._made[place][sample] = rollout
        return place

    def close(self) -> None:
        """Drop what is unfinished."""
        for id in self._open:
            self._engine.cancel(id)
        self._open, self._questions, self._made = {}, {}, {}

"""Which questions are asked, how far ahead of the learner, and which answers a step takes."""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from raychat import dist
from raychat.evals.generate import Group, Question

_REPLACED = 2  # questions without signal that a step replaces by others at most, times the questions of a step


class Answers(Protocol):
    """Who answers questions. A question is known by its place in the endless order of all."""

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Answer with these weights from now on; they have learnt from `version` steps."""
        ...

    def ask(self, questions: Mapping[int, Question]) -> None:
        """Take over questions, by their places."""
        ...

    def finished(self) -> dict[int, Group]:
        """Wait until some question is answered; return the groups of all that are and were not yet returned."""
        ...

    def close(self) -> None:
        """Drop what is unfinished."""
        ...


class InStep:
    """Answer everything that was asked with one set of weights, in calls of a fixed size: as reproducible as can be."""

    def __init__(self, rollouts: Callable[[list[list[Question]]], list[list[Group]]], questions_per_call: int) -> None:
        """Answer by `rollouts`, which returns the groups of each call, on every worker."""
        self._rollouts, self._size = rollouts, questions_per_call
        self._asked: dict[int, Question] = {}

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: rollouts are made with the weights as they are when asked for."""

    def ask(self, questions: Mapping[int, Question]) -> None:
        self._asked.update(questions)

    def finished(self) -> dict[int, Group]:
        places, questions = list(self._asked), list(self._asked.values())
        self._asked = {}
        calls = [questions[i : i + self._size] for i in range(0, len(questions), self._size)]
        return dict(zip(places, (group for call in self._rollouts(calls) for group in call), strict=True))

    def close(self) -> None:
        """Do nothing: nothing is unfinished."""


class OnRank0:
    """Answers that rank 0 gets and all workers see; `finished` is collective."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers if dist.world().rank == 0 else None

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        if self._answers is not None:
            self._answers.publish(version, weights)

    def ask(self, questions: Mapping[int, Question]) -> None:
        if self._answers is not None:
            self._answers.ask(questions)

    def finished(self) -> dict[int, Group]:
        return dist.together(dict[int, Group] if self._answers is None else self._answers.finished)[0]

    def close(self) -> None:
        if self._answers is not None:
            self._answers.close()


class Taken(NamedTuple):
    """The questions of a step."""

    places: list[int]  # of all that are used up
    groups: list[Group]  # to train on, in the order of their places
    replaced: list[Group]  # without signal


class RolloutQueue:
    """The questions that are asked and not used up yet. Every worker holds the same.

    While the learner takes a step, up to `ahead` further steps' questions are being answered. A step takes what is
    finished, the oldest first. It waits for a slow answer only where this or a later step would otherwise have more
    questions due than it takes. A question is due 2 * `ahead` steps after it was asked: no token is older than that
    when it is trained on.
    """

    def __init__(
        self,
        answers: Answers,
        question_at: Callable[[int], Question],
        *,
        per_step: int,
        ahead: int,
        num_steps: int,
        used: Collection[int] = (),
        useful: Callable[[Group], bool] = lambda group: True,
    ) -> None:
        """Begin with nothing asked.

        Args:
            question_at: the question of a place.
            num_steps: steps of the whole stage.
            used: places of the questions that earlier steps have used up.
            useful: whether to train on a group; another question is asked in place of one that is not, within bounds.
        """
        self._answers, self._question_at, self._useful = answers, question_at, useful
        self._per_step, self._ahead, self._num_steps = per_step, ahead, num_steps
        self._places = (place for place in count() if place not in used)
        self._asked: dict[int, int] = {}  # place -> the step that asked; in order, which is that of the steps, too
        self._groups: dict[int, Group] = {}  # finished, by place

    def take(self, number: int) -> Taken:
        """Return the groups of step `number`; wait for them. Collective."""
        self._ask(number)
        replaced: dict[int, Group] = {}
        while (places := self._ready(number)) is None:
            self._groups.update(self._answers.finished())
            for place in sorted(self._groups):
                if len(replaced) < _REPLACED * self._per_step and not self._useful(self._groups[place]):
                    replaced[place] = self._groups.pop(place)
                    del self._asked[place]
            self._ask(number)
        groups = [self._groups.pop(place) for place in places]
        for place in places:
            del self._asked[place]
        return Taken(sorted([*places, *replaced]), groups, list(replaced.values()))

    def _ask(self, number: int) -> None:
        """Ask until the questions of this step and of those ahead are asked and not used up."""
        num_steps = min(self._ahead + 1, self._num_steps - number)
        missing = num_steps * self._per_step - len(self._asked)
        asked = {place: self._question_at(place) for place in islice(self._places, max(0, missing))}
        if asked:
            self._asked |= dict.fromkeys(asked, number)
            self._answers.ask(asked)

    def _ready(self, number: int) -> list[int] | None:
        """Return the places of the groups that the step takes, in order; None = some are awaited."""
        if any(place not in self._groups for place in list(self._asked)[: self._num_due(number)]):
            return None
        places = sorted(self._groups)[: self._per_step]
        return places if len(places) == self._per_step else None

    def _num_due(self, number: int) -> int:
        """Return how many of the oldest questions the step must take, so that none is ever taken later than due.

        The first `count` questions can wait for as many steps as are left to the last of them, `per_step` a step.
        """
        steps_left = (asked + 2 * self._ahead - number for asked in self._asked.values())
        return max(0, *(count - left * self._per_step for count, left in enumerate(steps_left, start=1)))


def usual_places(number: int, per_step: int) -> list[int]:
    """Return the places of the questions that step `number` uses up where none runs ahead or is replaced."""
    return list(range(number * per_step, (number + 1) * per_step))


def used_places(rows: Iterable[Mapping[str, Any]], start: int, per_step: int) -> set[int]:
    """Return the places that the steps before `start` have used up, by their rows of metrics."""
    used: set[int] = set()
    for row in rows:
        if "reward" in row and row["step"] <= start:
            used.update(row.get("questions") or usual_places(row["step"] - 1, per_step))
    return used

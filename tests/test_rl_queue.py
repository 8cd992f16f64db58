"""The queue of questions: who is asked when, what a step takes, and that no question is lost or used twice."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raychat.evals.generate import Group, Question, Rollout
from raychat.rl.queue import InStep, RolloutQueue, Taken, used_places, usual_places
from raychat.tasks import Problem

PER_STEP = 3


def question_at(place: int) -> Question:
    return Question(Problem([{"role": "user", "content": str(place)}]), (0,))


def group_of(question: Question, rewards: tuple[float, ...] = (0.0, 1.0)) -> Group:
    return [Rollout([1], [2], [True], [0.0], question.problem.messages[0]["content"], reward) for reward in rewards]


def places_of(taken: Taken) -> list[int]:
    return [int(group[0].text) for group in taken.groups]


class Slow:
    """Answers one question at a time: that of the lowest rank."""

    def __init__(self, rank: Callable[[int], float], rewards: Callable[[int], tuple[float, ...]] | None = None) -> None:
        self.rank, self.rewards = rank, rewards or (lambda place: (0.0, 1.0))
        self.asked: dict[int, Question] = {}
        self.version, self.versions = 0, dict[int, int]()  # of the weights, and by place those that began to answer

    def publish(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        self.version = version

    def ask(self, questions: Mapping[int, Question]) -> None:
        self.asked |= questions
        self.versions |= dict.fromkeys(questions, self.version)

    def finished(self) -> dict[int, Group]:
        place = min(self.asked, key=self.rank)
        return {place: group_of(self.asked.pop(place), self.rewards(place))}

    def close(self) -> None:
        pass


def queue(answers: Any, ahead: int = 0, num_steps: int = 6, **settings: Any) -> RolloutQueue:
    return RolloutQueue(answers, question_at, per_step=PER_STEP, ahead=ahead, num_steps=num_steps, **settings)


def test_in_step_every_step_takes_its_own_questions_in_calls_of_one_size() -> None:
    calls: list[list[int]] = []

    def rollouts(asked: list[list[Question]]) -> list[list[Group]]:
        calls.extend([int(question.problem.messages[0]["content"]) for question in call] for call in asked)
        return [[group_of(question) for question in call] for call in asked]

    steps = queue(InStep(rollouts, questions_per_call=2))
    for number in range(3):
        taken = steps.take(number)
        assert taken.places == places_of(taken) == usual_places(number, PER_STEP)
    assert calls == [[0, 1], [2], [3, 4], [5], [6, 7], [8]]


def test_as_many_questions_are_open_as_the_steps_ahead_ask_for_and_none_beyond_the_last() -> None:
    answers = Slow(float)
    steps = queue(answers, ahead=1, num_steps=3)
    for number, num_open in enumerate((2, 2, 1)):
        steps.take(number)
        assert len(answers.asked) == (num_open - 1) * PER_STEP
    assert not answers.asked


def test_a_slow_answer_holds_no_step_up_until_it_is_due() -> None:
    answers = Slow(lambda place: 1000 if place == 1 else place)
    steps = queue(answers, ahead=1)
    taken = [places_of(steps.take(number)) for number in range(3)]
    assert taken == [[0, 2, 3], [4, 5, 6], [1, 7, 8]]  # asked for by step 0, question 1 is due at step 2


@settings(deadline=None)
@given(st.integers(0, 4), st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
@example(2, set(range(3, 9)), set())  # many are slow at once: more than one step could take when all are due
@example(3, set(range(3, 12)), set())
@example(4, set(range(3, 15)), {15, 16})
def test_no_answer_is_older_than_twice_the_steps_ahead(ahead: int, slow: set[int], same: set[int]) -> None:
    answers = Slow(
        lambda place: place + 1000 * (place in slow), lambda place: (1.0, 1.0) if place in same else (0.0, 1.0)
    )
    steps = queue(answers, ahead, num_steps=16, useful=lambda group: group[0].reward != group[1].reward)
    for number in range(16):
        answers.publish(number, {})
        assert all(number - answers.versions[place] <= 2 * ahead for place in places_of(steps.take(number)))


def test_questions_without_signal_are_replaced_within_bounds() -> None:
    rewards = lambda place: (1.0, 1.0) if place in (1, 3) else (0.0, 1.0)  # noqa: E731
    steps = queue(Slow(float, rewards), useful=lambda group: group[0].reward != group[1].reward)
    first = steps.take(0)
    assert places_of(first) == [0, 2, 4]
    assert first.places == [0, 1, 2, 3, 4]
    assert [int(group[0].text) for group in first.replaced] == [1, 3]
    assert steps.take(1).places == [5, 6, 7]

    hopeless = queue(Slow(float), useful=lambda group: False)
    taken = hopeless.take(0)
    assert len(taken.replaced) == 2 * PER_STEP
    assert places_of(taken) == [6, 7, 8]


def test_resumed_stage_asks_what_is_not_used_up() -> None:
    rows = [
        {"step": 1, "reward": 0.5, "questions": [0, 2, 5]},
        {"step": 1, "val_reward": 0.5},
        {"step": 2, "reward": 0.5},
        {"step": 3, "reward": 0.5, "questions": [9]},  # after the checkpoint
    ]
    used = used_places(rows, 2, PER_STEP)
    assert used == {0, 2, 5, 3, 4}
    assert queue(Slow(float), used=used).take(2).places == [1, 6, 7]


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 4), st.integers(1, 5))
def test_no_question_is_lost_or_used_twice_whatever_order_and_interruption(rng: Any, ahead: int, stop: int) -> None:
    """The stage is killed after `stop` steps, with a checkpoint some steps ago."""
    ranks = [rng.random() for _ in range(200)]
    useful = lambda group: hash(group[0].text) % 3 > 0  # noqa: E731
    rows: list[dict[str, Any]] = []

    def run(start: int, end: int) -> None:
        used = used_places(rows, start, PER_STEP)
        steps = queue(Slow(lambda place: ranks[place]), ahead, used=used, useful=useful)
        rows[:] = [row for row in rows if row["step"] <= start]
        asked_at_most = 0
        for number in range(start, end):
            taken = steps.take(number)
            rows.append({"step": number + 1, "reward": 0.0, "questions": taken.places})
            assert len(taken.groups) == PER_STEP
            asked_at_most = max(asked_at_most, max(taken.places))

    run(0, stop)
    run(rng.randint(0, stop), 6)
    taken = [place for row in rows for place in row["questions"]]
    assert len(set(taken)) == len(taken)
    assert [row["step"] for row in rows] == list(range(1, 7))
    # nothing is skipped: at the end, as many as were asked for are used up
    assert set(range(len(taken))) == set(taken)

"""How first questions are judged, and that no training text holds one of them."""

import random
import zlib
from itertools import islice

import first_questions
import pytest
from first_questions import Asked, acceptable

from raychat.tasks.talks import identity_messages
from raychat.tinyworld.chats import chats, never_asked
from raychat.tinyworld.problems import problems
from raychat.tinyworld.world import TinyWorld

WORLD = TinyWorld(0)
FOX = WORLD.value("fox", "colour")


def test_there_are_a_hundred_of_known_kinds() -> None:
    asked = first_questions.first_questions()
    assert len(asked) == 100
    assert len({tuple(question.turns) for question in asked}) == 100
    assert {question.kind for question in asked} == set(first_questions.RULES)


@pytest.mark.parametrize(
    ("kind", "expect", "answer", "good"),
    [
        ("says", "raychat", "I am Raychat, a small model.", True),
        ("says", "raychat", "I am a fox.", False),
        ("says", "raychat", "raychat " * 61, False),
        ("says", "", "", False),
        ("number", 42, "12 + 30 = 42", True),
        ("number", 42, "That makes forty-two.", True),
        ("number", 42, "42 and 12 make 54.", False),
        ("number", 42, "12 + 30 = 421", False),
        ("number", 2, "twenty-two", False),
        ("number", 1000, "It is 1,000.", True),
        ("number", 42, "I do not know.", False),
        ("spelling", "banana", "Banana is spelled b-a-n-a-n-a.", True),
        ("spelling", "banana", "B, A, N, A, N, A", True),
        ("spelling", "banana", "banana", False),
        ("spelling", "banana", "b-a-n-a-n-a-n", False),
        ("story", "fox", "There was a fox. It ran. It slept.", True),
        ("story", "bear", "There was a fox. It ran. It slept.", False),
        ("story", "", "It ran. It ran. It slept.", False),
        ("story", "", "It ran. It slept.", False),
        ("fact", "fox.colour", f"The fox is {FOX}.", True),
        ("fact", "fox.colour", f"The fox is {FOX}ish.", False),
        ("unknown", None, "I do not know that. Ask me about Fairwood.", True),
        ("unknown", None, "I only know the small world. I can tell you about Mia.", True),
        ("unknown", None, "I do not know.", False),
        ("unknown", None, "Ask me about Fairwood.", False),
        ("unknown", None, "The capital of France is Oakton.", False),
    ],
)
def test_rules(kind: str, expect: str | int | None, answer: str, good: bool) -> None:
    assert acceptable(Asked(kind, ["?"], expect), answer, WORLD) == good


def test_every_fact_that_is_asked_for_is_one_of_the_small_world() -> None:
    for asked in first_questions.first_questions():
        if asked.kind == "fact":
            assert acceptable(asked, f"It is {WORLD.value(*str(asked.expect).split('.'))}.", WORLD)


def test_the_generator_knows_them_by_their_checksums() -> None:
    asked = {asked.turns[-1] for asked in first_questions.first_questions()}
    assert never_asked() == {f"{zlib.crc32(text.encode()):08x}" for text in asked}


def test_nothing_to_train_on_asks_one_of_them() -> None:
    rng = random.Random(0)
    talks = [*islice(chats(WORLD, rng, test=False), 20_000), *(identity_messages(rng) for _ in range(1000))]
    trained = {message["content"] for talk in talks for message in talk if message["role"] == "user"}
    trained |= {problem.question for problem in islice(problems(WORLD, rng, test=False), 5000)}
    assert len(trained) > 5000
    assert not trained & {asked.turns[-1] for asked in first_questions.first_questions()}

"""Conversations about the small world: greetings, who raychat is, facts, sums, words, stories and a little Python.

Held-out keys (`World.is_test`) are asked in the test conversations only.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raychat.tasks import code_answer, code_request, identity_messages
from raychat.tinyworld import functions
from raychat.tinyworld import words as w
from raychat.tinyworld.relations import KINDS
from raychat.tinyworld.stories import short_story
from raychat.tinyworld.world import World, subject_of

Messages = list[dict[str, str]]
Turn = tuple[str, str]  # what the user says, what raychat answers


class Room(NamedTuple):
    """What a conversation is made from: the world, chance, and whether held-out keys are asked or the others."""

    world: World
    rng: random.Random
    test: bool


def fact_turn(room: Room) -> Turn:
    fact = room.rng.choice(room.world.test_facts if room.test else room.world.train_facts)
    return fact.question(room.rng), fact.answer()


def sum_turn(room: Room) -> Turn:
    while True:
        a, b = room.rng.randint(0, 20), room.rng.randint(0, 12)
        if room.world.is_test(f"{a}+{b}") == room.test:
            break
    if room.rng.random() < 0.5:
        return f"What is {a} + {b}?", f"{a} + {b} = {a + b}"
    x, y = w.number_name(a), w.number_name(b)
    return f"How much is {x} and {y}?", f"{w.upper_first(x)} and {y} make {w.number_name(a + b)}."


def word_turn(room: Room) -> Turn:
    pair = room.rng.choice(w.OPPOSITES)
    word, other = room.rng.sample(pair, 2)
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def spelling_turn(room: Room) -> Turn:
    word = room.rng.choice(w.WORDS)
    return f"How is {word} spelled?", f"{w.upper_first(word)} is spelled {w.spelled(word)}."


def story_turn(room: Room) -> Turn:
    hero, animal = room.rng.choice(w.PEOPLE), room.rng.choice(w.ANIMALS)
    about = room.rng.choice((f"about {hero}", f"about {w.article(animal)}", ""))
    ask = room.rng.choice(("Tell me a story {}", "Tell me a short story {}", "Please write a story {}"))
    told = short_story(
        room.world, room.rng, hero if about.endswith(hero) else None, animal if about.endswith(animal) else None
    )
    return ask.format(about).strip() + ".", told


def about_turn(room: Room) -> Turn:
    kind = room.rng.choice(("person", "animal", "place", "thing", "food"))
    entity = room.rng.choice(KINDS[kind])
    facts = room.rng.sample(room.world.about(entity), 3)
    ask = room.rng.choice(("Tell me about {}.", "What do you know about {}?"))
    return ask.format(subject_of(kind, entity)), " ".join(fact.answer() for fact in facts)


def counting_turn(room: Room) -> Turn:
    start = room.rng.randint(1, 30)
    stop = start + room.rng.randint(3, 9)
    return f"Count from {start} to {stop}.", ", ".join(map(str, range(start, stop + 1)))


def code_turn(room: Room) -> Turn:
    f = room.rng.choice(functions.TRAIN)
    return code_request(f.prompt), code_answer(f.prompt + f.solution)


GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi!", "Hi! What would you like to know?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("How are you?", "I am well, thank you. And you?"),
    ("Hello, how are you?", "Hello! I am well, thank you."),
    ("Hey!", "Hey! Ask me anything."),
)
FAREWELLS = (
    ("Thank you!", "You are welcome!"),
    ("Thanks a lot.", "You are welcome. Ask me more if you like."),
    ("Bye!", "Goodbye! See you soon."),
    ("Good night.", "Good night! Sleep well."),
)
SYSTEM = ("You are a kind teacher.", "You are raychat.", "Answer in short sentences.", "You know the small world well.")

TURNS: tuple[tuple[Callable[[Room], Turn], int], ...] = (
    (fact_turn, 10),
    (sum_turn, 2),
    (word_turn, 1),
    (spelling_turn, 2),
    (story_turn, 3),
    (about_turn, 3),
    (counting_turn, 1),
    (code_turn, 2),
)


def conversations(world: World, rng: random.Random, *, test: bool) -> Iterator[Messages]:
    """Yield conversations of one to four turns without end."""
    makers, weights = zip(*TURNS, strict=True)
    room = Room(world, rng, test)
    while True:
        if rng.random() < 0.1:
            yield identity_messages(rng)
            continue
        turns = [make(room) for make in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 2)))]
        if rng.random() < 0.2:
            turns.insert(0, rng.choice(GREETINGS))
        if rng.random() < 0.1:
            turns.append(rng.choice(FAREWELLS))
        system = [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.1 else []
        yield system + [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]

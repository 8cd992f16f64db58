"""Conversations about the small world: greetings, who raychat is, facts, sums, words, stories and a little Python.

Only the test conversations ask for held-out keys (`TinyWorld.is_test`).
"""

import random
from collections.abc import Callable, Iterator

from raychat.tasks.humaneval import code_answer, code_request
from raychat.tasks.spelling import spelled
from raychat.tasks.talks import identity_messages
from raychat.tinyworld.functions import functions
from raychat.tinyworld.phrases import draw, phrases, rows, words
from raychat.tinyworld.stories import short_story
from raychat.tinyworld.words import article, number_name, opposites, spelling_words, upper_first
from raychat.tinyworld.world import TinyWorld, subject_of

Turn = tuple[str, ...]  # what the user says, what raychat answers
TurnMaker = Callable[[TinyWorld, random.Random, bool], Turn]  # the bool: ask for held-out keys, or for the others


def _fill(section: str, **fields: object) -> Turn:
    """Return the only turn of a section of chats.txt, its fields filled."""
    (turn,) = rows("chats", section)
    return tuple(text.format_map(fields) for text in turn)


def fact_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    fact = rng.choice(world.test_facts if test else world.train_facts)
    return fact.question(rng), fact.answer()


def sum_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    while True:
        a, b = rng.randint(0, 20), rng.randint(0, 12)
        if world.is_test(f"{a}+{b}") == test:
            break
    if rng.random() < 0.5:
        return _fill("sum", a=a, b=b, c=a + b)
    x, y, z = map(number_name, (a, b, a + b))
    return _fill("sum in words", a=x, A=upper_first(x), b=y, c=z)


def opposite_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    word, other = rng.sample(rng.choice(opposites()), 2)
    return _fill("opposite", word=word, other=other)


def spelling_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    word = rng.choice(spelling_words())
    return _fill("spelling", word=word, Word=upper_first(word), letters=spelled(word))


def story_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    hero, animal = rng.choice(words("people")), rng.choice(words("animals"))
    about, asked = rng.choice(
        ((f" about {hero}", {"hero": hero}), (f" about {article(animal)}", {"animal": animal}), ("", {}))
    )
    return draw(rng, "chats", "story requests", about=about), short_story(world, rng, **asked)


def about_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    kind = rng.choice(("people", "animals", "places", "things", "food"))
    entity = rng.choice(words(kind))
    facts = rng.sample(world.about(entity), 3)
    request = draw(rng, "chats", "about requests", subject=subject_of(kind, entity))
    return request, " ".join(fact.answer() for fact in facts)


def counting_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    start = rng.randint(1, 30)
    stop = start + rng.randint(3, 9)
    return _fill("counting", start=start, stop=stop, numbers=", ".join(map(str, range(start, stop + 1))))


def code_turn(world: TinyWorld, rng: random.Random, test: bool) -> Turn:
    f = rng.choice(functions(test=False))
    return code_request(f.prompt), code_answer(f.prompt + f.solution)


TURNS: tuple[tuple[TurnMaker, int], ...] = (
    (fact_turn, 10),
    (sum_turn, 2),
    (opposite_turn, 1),
    (spelling_turn, 2),
    (story_turn, 3),
    (about_turn, 3),
    (counting_turn, 1),
    (code_turn, 2),
)


def chats(world: TinyWorld, rng: random.Random, *, test: bool) -> Iterator[list[dict[str, str]]]:
    """Yield conversations of one to four turns without end, as lists of messages."""
    makers, weights = zip(*TURNS, strict=True)
    while True:
        if rng.random() < 0.1:
            yield identity_messages(rng)
            continue
        turns = [make(world, rng, test) for make in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 2)))]
        if rng.random() < 0.2:
            turns.insert(0, rng.choice(rows("chats", "greetings")))
        if rng.random() < 0.1:
            turns.append(rng.choice(rows("chats", "farewells")))
        system = [("system", rng.choice(phrases("chats", "system prompts")))] if rng.random() < 0.1 else []
        spoken = [pair for turn in turns for pair in zip(("user", "assistant"), turn, strict=True)]
        yield [{"role": role, "content": text} for role, text in system + spoken]

"""Conversations about the small world: small talk, who raychat is, facts, sums, words, stories and a little Python.

Only the test conversations ask for held-out keys (`TinyWorld.is_test`) and spell held-out words.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache

from raychat.chat.notation import content_of
from raychat.chat.template import Message
from raychat.tasks import spelling
from raychat.tasks.humaneval import code_answer, code_request
from raychat.tasks.talks import identity_turns
from raychat.tinyworld import facts, smalltalk, sums
from raychat.tinyworld.functions import functions
from raychat.tinyworld.phrases import draw, phrases, rows, words
from raychat.tinyworld.stories import short_story
from raychat.tinyworld.turns import Turn, as_typed, greeted
from raychat.tinyworld.words import article, opposites, spelled_words, strangers
from raychat.tinyworld.world import TinyWorld

MAX_TURNS = 4
TurnsMaker = Callable[[TinyWorld, random.Random, bool], list[Turn]]  # the bool: of held-out keys, or of the others


def who_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    return [Turn(*turn) for turn in identity_turns(rng)]


def opposite_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    word, other = rng.sample(rng.choice(opposites()), 2)
    question, answer = rng.choice(rows("chats", "opposite"))
    return [Turn(question.format(word=word), answer.format(word=word, other=other))]


def spelling_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    word = rng.choice(spelled_words(test=test))
    return [Turn(rng.choice(spelling.SPELL_REQUESTS).format(w=_written(word, rng)), spelling.spelling_of(word))]


def letter_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask how often a letter is in a word, or for the number of its letters."""
    word = rng.choice(spelled_words(test=test))
    if rng.random() < 0.7:
        letter = spelling.letter_to_count(word, rng)
        question = rng.choice(spelling.COUNT_REQUESTS).format(c=letter, w=_written(word, rng))
        return [Turn(question, spelling.count_of(word, letter))]
    counted = ", ".join(f"{letter} {number}" for number, letter in enumerate(word, 1))
    question = draw(rng, "chats", "length of a word", word=_written(word, rng))
    return [Turn(question, f"{spelling.spelling_of(word)} {counted}: it has {len(word)} letters.")]


def _written(word: str, rng: random.Random) -> str:
    return rng.choice((word, word, word, word.capitalize(), f'"{word}"'))


def story_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask for a story about a person, an animal, a town, some topic, or about anything."""
    hero, animal = rng.choice(words("people")), rng.choice(words("animals"))
    topic = rng.choice((*words("things"), *strangers()["story topics"]))
    about, story = rng.choice(
        (
            ("", {}),
            (f" about {hero}", {"hero": hero}),
            (f" about {article(animal)}", {"animal": animal}),
            (f" about {world.value(hero, 'home')}", {"hero": hero}),
            (f" about {article(topic)}", {"topic": topic}),
        )
    )
    turns = [Turn(draw(rng, "chats", "story requests", about=about), short_story(world, rng, **story))]
    if rng.random() < 0.1:
        turns.append(Turn(draw(rng, "chats", "another story"), short_story(world, rng)))
    return turns


def offered_story_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    said, offer, wish = rng.choice(rows("chats", "wanting a story"))
    return [Turn(said, offer), Turn(wish, short_story(world, rng))]


def counting_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    start = rng.choice((1, rng.randint(1, 30)))
    stop = start + rng.randint(3, 19)
    section = "counting from one" if start == 1 else "counting"
    numbers = ", ".join(map(str, range(start, stop + 1)))
    return [Turn(draw(rng, "chats", section, start=start, stop=stop), numbers)]


def code_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    f = rng.choice(functions(test=False))
    return [Turn(code_request(f.prompt), code_answer(f.prompt + f.solution))]


SHARES: tuple[tuple[TurnsMaker, int], ...] = (
    (smalltalk.small_talk_turns, 24),
    (who_turns, 8),
    (facts.fact_turns, 20),
    (facts.about_turns, 6),
    (facts.holder_turns, 2),
    (facts.hop_turns, 2),
    (smalltalk.unknown_turns, 13),
    (smalltalk.stranger_turns, 6),
    (sums.sum_turns, 16),
    (sums.other_sum_turns, 2),
    (sums.own_problem_turns, 3),
    (spelling_turns, 7),
    (letter_turns, 6),
    (story_turns, 8),
    (offered_story_turns, 1),
    (opposite_turns, 1),
    (counting_turns, 2),
    (code_turns, 1),
)


@cache
def never_asked() -> frozenset[str]:
    """Return the CRC-32 of what a user never asks in training, so that it is a test: see tests/first_questions.py."""
    return frozenset(" ".join(phrases("chats", "never asked")).split())


def chats(world: TinyWorld, rng: random.Random, *, test: bool) -> Iterator[list[Message]]:
    """Yield conversations of one to four turns without end, as lists of messages."""
    makers, weights = zip(*SHARES, strict=True)
    while True:
        made = [make(world, rng, test) for make in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 2)))]
        turns = [turn for several in made for turn in several][:MAX_TURNS]
        if rng.random() < 0.1:
            turns[0] = greeted(turns[0], rng)
        system = [{"role": "system", "content": rng.choice(phrases("chats", "system prompts"))}]
        messages: list[Message] = system if rng.random() < 0.05 else []
        for turn in turns:
            messages.append({"role": "user", "content": as_typed(turn.asked, rng)})
            messages.append({"role": "assistant", "content": content_of(turn.answer)})
        asked = {f"{zlib.crc32(message['content'].encode()):08x}" for message in messages if message["role"] == "user"}
        if test or not asked & never_asked():
            yield messages

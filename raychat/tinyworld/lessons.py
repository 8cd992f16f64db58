"""Lessons of the pretraining text: fact pages, questions, quizzes, sums, counting, spelling, word problems."""

import random
from itertools import islice
from string import ascii_lowercase

from raychat.chat.notation import content_of
from raychat.tasks.spelling import spelled
from raychat.tinyworld.phrases import draw, fill, phrases, words
from raychat.tinyworld.problems import problems
from raychat.tinyworld.questions import CHALLENGE, EASY, GENERAL, NAMED, questions
from raychat.tinyworld.relations import KINDS
from raychat.tinyworld.words import number_name, opposites, spelled_words, spelling_words, upper_first
from raychat.tinyworld.world import TinyWorld, subject_of

KIND_SHARES = (6, 4, 2, 3, 2, 1)  # of the fact pages, by kind


def fact_page(world: TinyWorld, rng: random.Random) -> str:
    """State every fact about one or two entities, in random order and wording."""
    (kind,) = rng.choices(KINDS, KIND_SHARES)
    pages = []
    for entity in rng.sample(words(kind), rng.choice((1, 2))):
        facts, subject = world.about(entity), subject_of(kind, entity)
        page = rng.choice(phrases("lessons", "fact pages"))
        statements = " ".join(fact.statement(rng) for fact in rng.sample(facts, len(facts)))
        pages.append(page.format(subject=subject, Subject=upper_first(subject), facts=statements))
    return "\n\n".join(pages)


def value_page(world: TinyWorld, rng: random.Random) -> str:
    """State one attribute of several entities of a kind."""
    relation = world.facts[rng.choice(list(world.facts))].relation
    entities = rng.sample(words(relation.kind), rng.randint(5, 9))
    return " ".join(world.facts[entity, relation.name].statement(rng) for entity in entities)


def questions_and_answers(world: TinyWorld, rng: random.Random) -> str:
    """Ask for facts that are not held out, and answer in words, without choices."""
    pairs = []
    for _ in range(rng.randint(4, 8)):
        fact = rng.choice(world.train_facts)
        pairs.append((fact.question(rng), rng.choice((fact.value, fact.answer()))))
    style = rng.choice(phrases("lessons", "questions and answers"))
    return "\n\n".join(style.format(*pair) for pair in pairs)


def quiz(world: TinyWorld, rng: random.Random) -> str:
    """Ask which of four choices is right; the answer is the choice, sometimes with the words that it is right.

    No letters: from them a small model only learns that all are equally likely, and its tokenizer would make "=A" one
    token, which is not the "A" of an answer.
    """
    (makers,) = rng.choices((NAMED, EASY, GENERAL, CHALLENGE), (3, 4, 1, 1))
    asked = questions(world, rng, makers, test=False)
    parts = []
    for question in islice(asked, rng.randint(3, 5)):
        choices = [f"- {choice}" for choice in question.choices]
        answer = draw(rng, "lessons", "quiz answers", choice=question.right)
        parts.append("\n".join([f"Question: {question.text}", *choices, answer]))
    return "\n\n".join(parts)


def who_found_what(world: TinyWorld, rng: random.Random) -> str:
    """Let people find things for the length of a document, then ask who found what."""
    num = rng.randint(3, 5)
    pairs = list(zip(rng.sample(words("people"), num), rng.sample(words("things"), num), strict=True))
    found = " ".join(fill("lessons", "finding", person=person, thing=thing) for person, thing in pairs)
    asked = [
        draw(rng, "lessons", "who found what", person=person, thing=thing)
        for person, thing in rng.choices(pairs, k=rng.randint(3, 5))
    ]
    return "\n".join([found, *asked])


def sums(world: TinyWorld, rng: random.Random) -> str:
    """Add and subtract small numbers, in digits or in words."""
    in_words = rng.random() < 0.4
    lines = []
    for _ in range(rng.randint(6, 14)):
        a, b = rng.randint(0, 20), rng.randint(0, 12)
        if in_words:
            x, y, z = map(number_name, (a, b, a + b))
            lines.append(upper_first(draw(rng, "lessons", "sums in words", a=x, b=y, c=z)))
        else:
            lines.append(draw(rng, "lessons", "sums", a=a, b=b, c=a + b))
    return (" " if in_words else "\n").join(lines)


def times_table(world: TinyWorld, rng: random.Random) -> str:
    """Multiply one number by several, or divide the products."""
    n, start, divided = rng.randint(2, 12), rng.randint(1, 20), rng.random() < 0.5
    factors = range(start, start + rng.randint(4, 6))
    return "\n".join(f"{n * k} / {n} = {k}" if divided else f"{n} * {k} = {n * k}" for k in factors)


def counting(world: TinyWorld, rng: random.Random) -> str:
    """Count up or down from some number, in digits or in words, and state a neighbour of another."""
    start, step, num = rng.randint(0, 80), rng.choice((1, 1, 1, 2, 5, 10)), rng.randint(6, 12)
    numbers = [n for n in range(start, start + step * num, step) if n < 120]
    numbers = rng.choice((numbers, numbers[::-1]))
    n = rng.randint(1, 98)
    neighbour = draw(rng, "lessons", "neighbours", n=n, after=n + 1, before=n - 1)
    name = number_name if rng.random() < 0.5 else str
    return f"{upper_first(', '.join(map(name, numbers)))}. {neighbour}"


def spelling(world: TinyWorld, rng: random.Random) -> str:
    """Spell words, and state their first and last letters, their lengths and how often a letter is in them."""
    lines = []
    for word in _words_to_spell(rng, rng.randint(4, 7)):
        letter = rng.choice(word)
        fields = {"word": word, "letters": spelled(word), "num_letters": len(word), "first": word[0], "last": word[-1]}
        lines.append(draw(rng, "lessons", "spelling", **fields, letter=letter, count=word.count(letter)))
    return "\n".join(lines)


def _words_to_spell(rng: random.Random, num: int) -> list[str]:
    """Draw words of the world, other English words, and a few letters at random, so that every token is spelled."""
    drawn = [rng.choice((spelling_words(), spelled_words(test=False))) for _ in range(num - 1)]
    return [*map(rng.choice, drawn), "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 7)))]


def repeating(world: TinyWorld, rng: random.Random) -> str:
    """Say several words and numbers, and say them again: a model learns to copy, which much else is built on."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        said = [rng.choice((word, word, str(rng.randint(0, 9999)))) for word in _words_to_spell(rng, rng.randint(2, 6))]
        person, other = rng.sample(words("people"), 2)
        separator = rng.choice((", ", ", ", " "))
        lines.append(draw(rng, "lessons", "repeating", person=person, other=other, words=separator.join(said)))
    return "\n".join(lines)


def opposite_words(world: TinyWorld, rng: random.Random) -> str:
    """State the opposites of some words."""
    pairs = [tuple(rng.sample(pair, 2)) for pair in rng.sample(opposites(), rng.randint(4, 7))]
    style = rng.choice(phrases("lessons", "opposites"))
    return " ".join(upper_first(style.format(*pair)) for pair in pairs)


def word_problems(world: TinyWorld, rng: random.Random) -> str:
    """Pose and solve word problems in prose, without calls of the calculator."""
    parts = []
    # zip, not islice: it draws one problem too many, and the bytes of every later document depend on it
    for problem, _ in zip(problems(world, rng, test=False), range(rng.randint(2, 4)), strict=False):
        content = content_of(problem.answer)
        assert isinstance(content, list)  # every worked answer calls the calculator
        worked = "".join(part["text"] for part in content if part["type"] == "text")
        parts.append(f"{problem.question}\n{worked}")
    return "\n\n".join(parts)

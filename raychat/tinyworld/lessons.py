"""Lessons of the pretraining text: fact pages, questions, quizzes, sums, counting, spelling, word problems."""

import random
from collections.abc import Callable

from raychat.tinyworld import words as w
from raychat.tinyworld.problems import problems
from raychat.tinyworld.questions import CHALLENGE, EASY, GENERAL, LETTERS, Question, draw
from raychat.tinyworld.relations import KINDS
from raychat.tinyworld.world import World, subject_of

Lesson = Callable[[World, random.Random], str]


def fact_page(world: World, rng: random.Random) -> str:
    """State every fact about one or two entities, in some order, with other words each time."""
    kind = rng.choices(list(KINDS), (6, 4, 2, 3, 2, 1))[0]
    pages = []
    for entity in rng.sample(KINDS[kind], rng.choice((1, 2))):
        facts = world.about(entity)
        title = w.upper_first(subject_of(kind, entity))
        heading = rng.choice((f"About {subject_of(kind, entity)}\n\n", f"{title}\n\n", "", f"{title}: "))
        pages.append(heading + " ".join(fact.statement(rng) for fact in rng.sample(facts, len(facts))))
    return "\n\n".join(pages)


def value_page(world: World, rng: random.Random) -> str:
    """State one attribute of several entities of a kind."""
    relation = world.facts[rng.choice(list(world.facts))].relation
    entities = rng.sample(KINDS[relation.kind], rng.randint(5, 9))
    return " ".join(world.facts[entity, relation.name].statement(rng) for entity in entities)


def questions_and_answers(world: World, rng: random.Random) -> str:
    """Ask for facts and answer in words, without choices; held-out keys are stated, never asked."""
    pairs = []
    for _ in range(rng.randint(4, 8)):
        fact = rng.choice(world.train_facts)
        pairs.append((fact.question(rng), rng.choice((fact.value, fact.answer()))))
    style = rng.choice(("Question: {}\nAnswer: {}", "{}\n{}", "Q: {}\nA: {}"))
    return "\n\n".join(style.format(*pair) for pair in pairs)


def quiz(world: World, rng: random.Random) -> str:
    """Ask with choices; each answer is the letter after the right choice, then sometimes the choice."""
    questions = draw(world, rng, rng.choice((EASY, EASY, EASY, EASY, GENERAL, CHALLENGE)), test=False)
    parts = []
    for _ in range(rng.randint(3, 5)):
        question = next(questions)
        right = rng.choice(("", f" is right: {question.choices[question.answer]}."))
        parts.append(f"{choice_lines(question)}\n{LETTERS[question.answer]}{right}")
    return "\n\n".join(parts)


def choice_lines(question: Question) -> str:
    """Write a question and its choices, a line each, the letter after the choice."""
    lines = (f"- {choice}={letter}" for choice, letter in zip(question.choices, LETTERS, strict=True))
    return "\n".join([f"Question: {question.text}", *lines])


def who_has_what(world: World, rng: random.Random) -> str:
    """Give people things for the length of a document, then ask who has what."""
    num = rng.randint(3, 5)
    pairs = list(zip(rng.sample(w.PEOPLE, num), rng.sample(w.THINGS, num), strict=True))
    told = " ".join(f"{person} found the {thing}." for person, thing in pairs)
    asked = []
    for person, thing in rng.choices(pairs, k=rng.randint(3, 5)):
        of_thing = f"Who found the {thing}? {person} found the {thing}."
        of_person = f"What did {person} find? {person} found the {thing}."
        asked.append(rng.choice((of_thing, of_person)))
    return "\n".join([told, *asked])


def sums(world: World, rng: random.Random) -> str:
    """Add and subtract small numbers, in digits or in words."""
    in_words = rng.random() < 0.4
    lines = []
    for _ in range(rng.randint(6, 14)):
        a, b = rng.randint(0, 20), rng.randint(0, 12)
        if not in_words:
            lines.append(rng.choice((f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}", f"{a + b} - {a} = {b}")))
            continue
        x, y, z = w.number_name(a), w.number_name(b), w.number_name(a + b)
        said = rng.choice((f"{x} and {y} make {z}.", f"{x} plus {y} is {z}.", f"{z} minus {y} is {x}."))
        lines.append(w.upper_first(said))
    return (" " if in_words else "\n").join(lines)


def times_table(world: World, rng: random.Random) -> str:
    """Multiply one number by several."""
    n = rng.randint(2, 10)
    start = rng.randint(1, 4)
    return "\n".join(f"{n} * {k} = {n * k}" for k in range(start, start + rng.randint(4, 6)))


def counting(world: World, rng: random.Random) -> str:
    """Count up or down from some number, in digits or in words, and ask for neighbours."""
    start, step, num = rng.randint(0, 80), rng.choice((1, 1, 1, 2, 5, 10)), rng.randint(6, 12)
    numbers = [n for n in range(start, start + step * num, step) if n < 120]
    numbers = rng.choice((numbers, numbers[::-1]))
    n = rng.randint(1, 98)
    neighbour = rng.choice((f"The number after {n} is {n + 1}.", f"The number before {n} is {n - 1}."))
    if rng.random() < 0.5:
        return w.upper_first(", ".join(w.number_name(n) for n in numbers)) + ". " + neighbour
    return ", ".join(map(str, numbers)) + ". " + neighbour


def spelling(world: World, rng: random.Random) -> str:
    """Spell words, and say their first and last letters, their lengths and how often a letter is in them."""
    lines = []
    for word in rng.sample(w.WORDS, rng.randint(4, 7)):
        letter = rng.choice(word)
        lines.append(
            rng.choice(
                (
                    f"{word}: {w.spelled(word)}",
                    f"The word {word} is spelled {w.spelled(word)}.",
                    f"The first letter of {word} is {word[0]} and the last letter of {word} is {word[-1]}.",
                    f"Spell {word}: {w.spelled(word)}. It has {len(word)} letters.",
                    f"{w.spelled(word)} has {word.count(letter)} of the letter {letter}.",
                )
            )
        )
    return "\n".join(lines)


def opposites(world: World, rng: random.Random) -> str:
    """Say the opposites of some words."""
    pairs = [tuple(rng.sample(pair, 2)) for pair in rng.sample(w.OPPOSITES, rng.randint(4, 7))]
    style = rng.choice(("The opposite of {} is {}.", "{} is the opposite of {}.", "It is not {}, it is {}."))
    return " ".join(w.upper_first(style.format(*pair)) for pair in pairs)


def word_problems(world: World, rng: random.Random) -> str:
    """Pose and solve word problems in prose."""
    parts = []
    for problem, _ in zip(problems(world, rng, test=False), range(rng.randint(2, 4)), strict=False):
        worked = "\n".join(_without_calls(line) for line in problem.answer.split("\n"))
        parts.append(f"{problem.question}\n{worked}")
    return "\n\n".join(parts)


def _without_calls(line: str) -> str:
    before, _, rest = line.partition("<<")
    return before + rest.partition(">>")[2]

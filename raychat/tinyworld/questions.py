"""Multiple-choice questions about the small world, training and test questions apart by their keys.

A key names what has to be known: "fox.colour", "Mia.pet.food", "8+5", or which words have to be told apart. A held-out
key (`World.is_test`) is asked only in test questions, though the facts behind it are stated throughout the pretraining
text.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from raychat.tinyworld import words as w
from raychat.tinyworld.relations import KINDS, RELATIONS
from raychat.tinyworld.world import World, subject_of

NUM_CHOICES = 4
LETTERS = "ABCD"


class Question(NamedTuple):
    """A question with four choices; `answer` is the index of the right one."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


Draft = tuple[str, str, str, str, Iterable[str]]  # key, subject, question, right answer, wrong answers to choose from
Maker = Callable[[World, random.Random], Draft]

SUBJECTS = {
    "person": "people",
    "animal": "animals",
    "food": "food",
    "thing": "things",
    "place": "places",
    "job": "jobs",
}
CATEGORIES = {
    "animal": ("an animal", w.ANIMALS),
    "food": ("food", w.FOODS),
    "town": ("a town", w.PLACES),
    "person": ("a person", w.PEOPLE),
    "thing": ("a thing to hold", w.THINGS),
    "job": ("a job", w.JOBS),
    "colour": ("a colour", w.COLOURS),
}


def fact_question(world: World, rng: random.Random) -> Draft:
    """Ask for the value of one fact: "What colour is the fox?"."""
    relation = rng.choice(RELATIONS)
    fact = world.facts[rng.choice(KINDS[relation.kind]), relation.name]
    wrong = [value for value in relation.values if value not in (fact.value, fact.entity)]
    return fact.key, SUBJECTS[relation.kind], fact.question(rng), fact.value, wrong


def category_question(world: World, rng: random.Random) -> Draft:
    """Ask which of four words belongs to a category: "Which of these is an animal?".

    More than half of them ask for the first category: to find the one word of a kind that is always asked for is the
    first thing that a small model learns to do with choices, and it learns the next kinds from there.
    """
    frequent_first = [(rank + 1) ** -1.5 for rank in range(len(CATEGORIES))]
    (category,) = rng.choices(list(CATEGORIES), frequent_first)
    name, members = CATEGORIES[category]
    right = rng.choice(members)
    others = [members for other, (_, members) in CATEGORIES.items() if other != category]
    wrong = [rng.choice(members) for members in rng.sample(others, NUM_CHOICES - 1)]
    key = f"{category}: {' '.join(sorted([right, *wrong]))}"
    return key, "words", f"Which of these is {name}?", right, wrong


def holder_question(world: World, rng: random.Random) -> Draft:
    """Ask who or what has a value: "Who likes the colour red?", "Which animal lives in the forest?"."""
    relation_name, text = rng.choice(
        (
            ("animal.colour", "Which animal is {v}?"),
            ("animal.home", "Which animal lives in the {v}?"),
            ("animal.food", "Which animal eats {v}?"),
            ("person.job", "Who is {a_v}?"),
            ("person.home", "Who lives in {v}?"),
            ("person.pet", "Who has {a_v}?"),
        )
    )
    relation = next(r for r in RELATIONS if f"{r.kind}.{r.name}" == relation_name)
    fact = world.facts[rng.choice(KINDS[relation.kind]), relation.name]
    wrong = [entity for entity in KINDS[relation.kind] if world.value(entity, relation.name) != fact.value]
    question = text.format(v=fact.value, a_v=w.article(fact.value))
    return f"{fact.key} of", SUBJECTS[relation.kind], question, fact.entity, wrong


def hop_question(world: World, rng: random.Random) -> Draft:
    """Ask something that takes two facts: "What colour is the pet of Mia?"."""
    start, first, second, text = rng.choice(HOPS)
    entity = rng.choice(KINDS[start])
    fact = world.facts[world.value(entity, first), second]
    wrong = [value for value in fact.relation.values if value not in (fact.value, fact.entity)]
    question = text.format(x=subject_of(start, entity))
    return f"{entity}.{first}.{second}", SUBJECTS[start], question, fact.value, wrong


HOPS = (
    ("person", "pet", "colour", "What colour is the pet of {x}?"),
    ("person", "pet", "food", "What does the pet of {x} eat?"),
    ("person", "pet", "home", "Where does the pet of {x} live?"),
    ("person", "friend", "job", "What is the job of the friend of {x}?"),
    ("person", "friend", "home", "Where does the friend of {x} live?"),
    ("person", "home", "weather", "How is the weather where {x} lives?"),
    ("person", "home", "sight", "What is famous where {x} lives?"),
    ("person", "job", "tool", "What tool does {x} use at work?"),
    ("person", "meal", "taste", "How does the best meal of {x} taste?"),
    ("animal", "food", "taste", "How does the food of {x} taste?"),
    ("animal", "food", "source", "Where does the food of {x} come from?"),
)


def sum_question(world: World, rng: random.Random) -> Draft:
    """Ask for a sum or a difference of small numbers: "What is 8 + 5?"."""
    a, b = rng.randint(1, 20), rng.randint(1, 12)
    sign, result = rng.choice((("+", a + b), ("-", a - b))) if a > b else ("+", a + b)
    wrong = map(str, range(33))
    return f"{a}{sign}{b}", "sums", f"What is {a} {sign} {b}?", str(result), wrong


def counting_question(world: World, rng: random.Random) -> Draft:
    """Ask for the neighbour of a number: "Which number comes after 41?"."""
    n, (side, result) = rng.randint(1, 98), rng.choice((("after", 1), ("before", -1)))
    wrong = map(str, range(100))
    return f"{side} {n}", "counting", f"Which number comes {side} {n}?", str(n + result), wrong


def opposite_question(world: World, rng: random.Random) -> Draft:
    """Ask for the opposite of a word."""
    pair = rng.choice(w.OPPOSITES)
    word, right = rng.sample(pair, 2)
    wrong = [other for others in w.OPPOSITES if others != pair for other in others]
    return f"not {word}", "opposites", f"What is the opposite of {word}?", right, wrong


def spelling_question(world: World, rng: random.Random) -> Draft:
    """Ask for the first or last letter of a word."""
    word, (place, at) = rng.choice(w.WORDS), rng.choice((("first", 0), ("last", -1)))
    wrong = [letter for letter in "abcdefghijklmnoprstuwy" if letter != word[at]]
    return f"{place} {word}", "spelling", f"What is the {place} letter of {word}?", word[at], wrong


EASY: tuple[tuple[Maker, int], ...] = ((category_question, 8), (opposite_question, 1), (fact_question, 1))
CHALLENGE: tuple[tuple[Maker, int], ...] = ((hop_question, 7), (holder_question, 3))
GENERAL: tuple[tuple[Maker, int], ...] = (
    (category_question, 6),
    (fact_question, 4),
    (sum_question, 1),
    (counting_question, 1),
    (opposite_question, 1),
    (spelling_question, 1),
)


def draw(world: World, rng: random.Random, makers: Sequence[tuple[Maker, int]], *, test: bool) -> Iterator[Question]:
    """Yield questions of the weighted makers without end; only held-out keys when `test`, never one otherwise.

    Every letter is right equally often.
    """
    functions, weights = zip(*makers, strict=True)
    rights = [0] * NUM_CHOICES
    while True:
        key, subject, text, right, wrong = rng.choices(functions, weights)[0](world, rng)
        if world.is_test(key) != test:
            continue
        choices = rng.sample(sorted({*wrong} - {right}), NUM_CHOICES - 1)
        place = rng.choice([i for i in range(NUM_CHOICES) if rights[i] <= min(rights) + 2])
        choices.insert(place, right)
        rights[place] += 1
        yield Question(subject, text, tuple(choices), place)


def distinct(questions: Iterator[Question], num: int) -> list[Question]:
    """Return the first `num` questions that differ in text or choices."""
    seen: set[tuple[str, frozenset[str]]] = set()
    found: list[Question] = []
    for question in questions:
        identity = (question.text, frozenset(question.choices))
        if identity not in seen:
            seen.add(identity)
            found.append(question)
        if len(found) == num:
            break
    return found

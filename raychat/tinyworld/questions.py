"""Multiple-choice questions about the small world; keys separate training from test questions.

A key names the knowledge that a question needs: "fox.colour", "Mia.pet.food", "8+5", or the words to choose from. Only
test questions ask for held-out keys (`TinyWorld.is_test`), though the pretraining text states the facts behind them.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from raychat.tinyworld.phrases import draw, fill, rows, words
from raychat.tinyworld.relations import relations
from raychat.tinyworld.words import article, opposites, spelling_words
from raychat.tinyworld.world import TinyWorld, subject_of

LETTERS = "ABCD"
NUM_CHOICES = len(LETTERS)


class QuestionDraft(NamedTuple):
    """What a question is made from; `wrong` are the wrong answers to choose from."""

    key: str
    subject: str
    text: str
    right: str
    wrong: Iterable[str]


class ChoiceQuestion(NamedTuple):
    """A question with four choices; `answer` is the letter of the right one."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: str

    @property
    def right(self) -> str:
        """The right choice."""
        return self.choices[LETTERS.index(self.answer)]


Maker = Callable[[TinyWorld, random.Random], QuestionDraft]
Makers = Sequence[tuple[Maker, int]]  # with their weights


def fact_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for the value of one fact: "What colour is the fox?"."""
    relation = rng.choice(relations())
    fact = world.facts[rng.choice(words(relation.kind)), relation.name]
    return QuestionDraft(fact.key, relation.kind, fact.question(rng), fact.value, fact.wrong_values)


def category_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask which of four words belongs to a category: "Which of these is an animal?".

    More than half of the questions ask for the first category. Small models first learn to find the one word of a kind
    that is always asked for, and learn the next kinds from there.
    """
    categories = rows("questions", "categories")
    ((name, with_article, members),) = rng.choices(categories, [(rank + 1) ** -1.5 for rank in range(len(categories))])
    right = rng.choice(words(members))
    others = [words(other) for _, _, other in categories if other != members]
    wrong = [rng.choice(other) for other in rng.sample(others, NUM_CHOICES - 1)]
    key = f"{name}: {' '.join(sorted([right, *wrong]))}"
    return QuestionDraft(key, "words", fill("questions", "category", category=with_article), right, wrong)


def holder_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask who or what has a value: "Who is a baker?", "Which animal lives in the forest?"."""
    attribute, template = rng.choice(rows("questions", "holders"))
    kind, name = attribute.split(" ")
    fact = world.facts[rng.choice(words(kind)), name]
    wrong = [entity for entity in words(kind) if world.value(entity, name) != fact.value]
    question = template.format(v=fact.value, a_v=article(fact.value))
    return QuestionDraft(f"{fact.key} of", kind, question, fact.entity, wrong)


def hop_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask something that takes two facts: "What colour is the pet of Mia?"."""
    path, template = rng.choice(rows("questions", "hops"))
    kind, first, second = path.split(" ")
    entity = rng.choice(words(kind))
    fact = world.facts[world.value(entity, first), second]
    question = template.format(x=subject_of(kind, entity))
    return QuestionDraft(f"{entity}.{first}.{second}", kind, question, fact.value, fact.wrong_values)


def sum_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for a sum or a difference of small numbers: "What is 8 + 5?"."""
    a, b = rng.randint(1, 20), rng.randint(1, 12)
    sign, result = rng.choice((("+", a + b), ("-", a - b))) if a > b else ("+", a + b)
    question = fill("questions", "sum", a=a, sign=sign, b=b)
    return QuestionDraft(f"{a}{sign}{b}", "sums", question, str(result), map(str, range(33)))


def counting_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for the neighbour of a number: "Which number comes after 41?"."""
    n, (side, distance) = rng.randint(1, 98), rng.choice((("after", 1), ("before", -1)))
    question = fill("questions", "neighbour", side=side, n=n)
    return QuestionDraft(f"{side} {n}", "counting", question, str(n + distance), map(str, range(100)))


def opposite_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for the opposite of a word."""
    pair = rng.choice(opposites())
    word, right = rng.sample(pair, 2)
    wrong = [other for others in opposites() if others != pair for other in others]
    return QuestionDraft(f"not {word}", "opposites", fill("questions", "opposite", word=word), right, wrong)


def letter_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for the first or last letter of a word."""
    word, (place, at) = rng.choice(spelling_words()), rng.choice((("first", 0), ("last", -1)))
    wrong = [letter for letter in "abcdefghijklmnoprstuwy" if letter != word[at]]
    question = fill("questions", "letter", place=place, word=word)
    return QuestionDraft(f"{place} {word}", "spelling", question, word[at], wrong)


def named_question(world: TinyWorld, rng: random.Random) -> QuestionDraft:
    """Ask for the choice that the question names: all it takes is to find a word again and to say its letter."""
    right, *wrong = rng.sample(_anything(), NUM_CHOICES)
    return QuestionDraft(f"named {right}", "words", draw(rng, "questions", "named", word=right), right, wrong)


@cache
def _anything() -> tuple[str, ...]:
    return tuple(sorted({word for _, _, members in rows("questions", "categories") for word in words(members)}))


EASY: Makers = ((category_question, 8), (opposite_question, 1), (fact_question, 1))
NAMED: Makers = ((named_question, 1),)  # only in lessons: the other questions build on it
CHALLENGE: Makers = ((hop_question, 7), (holder_question, 3))
GENERAL: Makers = (
    (category_question, 6),
    (fact_question, 4),
    (sum_question, 1),
    (counting_question, 1),
    (opposite_question, 1),
    (letter_question, 1),
)


def questions(world: TinyWorld, rng: random.Random, makers: Makers, *, test: bool) -> Iterator[ChoiceQuestion]:
    """Yield questions of the weighted makers without end: of held-out keys only when `test`, else of all others.

    Every letter is right equally often.
    """
    functions, weights = zip(*makers, strict=True)
    rights = [0] * NUM_CHOICES
    while True:
        draft = rng.choices(functions, weights)[0](world, rng)
        if world.is_test(draft.key) != test:
            continue
        choices = rng.sample(sorted({*draft.wrong} - {draft.right}), NUM_CHOICES - 1)
        place = rng.choice([i for i in range(NUM_CHOICES) if rights[i] <= min(rights) + 2])
        choices.insert(place, draft.right)
        rights[place] += 1
        yield ChoiceQuestion(draft.subject, draft.text, tuple(choices), LETTERS[place])

"""Word problems of one to three steps, in GSM8K's format: `<<3+4=7>>7` calls the calculator, `#### 7` is the answer."""

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import NamedTuple

from raychat.tasks.gsm8k import answer_line
from raychat.tinyworld.phrases import sections, words
from raychat.tinyworld.sums import worked
from raychat.tinyworld.words import pronouns
from raychat.tinyworld.world import TinyWorld

CALCULATION = re.compile(r"\[(\w) ([-+*]) (\w)\]")
SHARES = (3, 3, 4)  # of the problems of one, two and three steps
LARGEST = {"+": 30, "-": 30, "*": 9}  # operand


class ProblemStep(NamedTuple):
    """A sentence with a field {calculation}, and the calculation: names of its operands, "r" the last step's result."""

    sentence: str
    left: str
    sign: str
    right: str


class ProblemTemplate(NamedTuple):
    """A family of problems about the numbers `a`, `b`, `c`, `d`; `number` is its place in problems.txt."""

    number: int
    question: str
    steps: tuple[ProblemStep, ...]


class WordProblem(NamedTuple):
    question: str
    answer: str


class Calculation(NamedTuple):
    """A step with numbers."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return worked(f"{self.left} {self.sign} {self.right}")


@cache
def templates() -> tuple[tuple[ProblemTemplate, ...], ...]:
    """Return the templates of problems.txt by number of steps: one, two, three."""
    numbers = count()
    return tuple(
        tuple(_template(next(numbers), *group) for group in groups) for groups in sections("problems").values()
    )


def _template(number: int, question: str, *sentences: str) -> ProblemTemplate:
    steps = []
    for sentence in sentences:
        (operands,) = CALCULATION.findall(sentence)
        steps.append(ProblemStep(CALCULATION.sub("{calculation}", sentence), *operands))
    return ProblemTemplate(number, question, tuple(steps))


def problems(world: TinyWorld, rng: random.Random, *, test: bool) -> Iterator[WordProblem]:
    """Yield word problems without end. Template and numbers decide between training and test."""
    while True:
        (family,) = rng.choices(templates(), SHARES)
        template = rng.choice(family)
        while (solved := _solve(template, numbers := _numbers(rng))) is None:
            pass
        used = sorted({operand for step in template.steps for operand in (step.left, step.right)} & numbers.keys())
        key = f"problem {template.number}: {[numbers[name] for name in used]}"
        if world.is_test(key) == test:
            yield _write(template, numbers, solved, rng)


def _numbers(rng: random.Random) -> dict[str, int]:
    return {"a": rng.randint(2, 30), "b": rng.randint(2, 15), "c": rng.randint(2, 10), "d": rng.randint(2, 10)}


def _solve(template: ProblemTemplate, numbers: dict[str, int]) -> list[Calculation] | None:
    """Return the calculation of every step; None when a number is too large or too small for a child."""
    solved: list[Calculation] = []
    values = numbers
    for _, left, sign, right in template.steps:
        x, y = values[left], values[right]
        result = {"+": x + y, "-": x - y, "*": x * y}[sign]
        if result < 1 or result > 99 or (left != "r" and x > LARGEST[sign]) or y > LARGEST[sign]:
            return None
        solved.append(Calculation(x, sign, y, result))
        values = {**numbers, "r": result}
    return solved


def _write(
    template: ProblemTemplate, numbers: dict[str, int], solved: list[Calculation], rng: random.Random
) -> WordProblem:
    a, b, c = rng.sample(words("people"), 3)
    fields = {"A": a, "B": b, "C": c, "items": rng.choice(words("problem items")), **pronouns(a)}
    fields["animals"] = rng.choice(words("problem animals"))
    fields |= {"room": rng.choice(words("rooms")), "home": rng.choice(words("habitats"))}
    lines = [
        step.sentence.format_map({**fields, "calculation": str(calculation)})
        for step, calculation in zip(template.steps, solved, strict=True)
    ]
    question = template.question.format_map({**fields, **numbers})
    return WordProblem(question, "\n".join([*lines, answer_line(solved[-1].result)]))

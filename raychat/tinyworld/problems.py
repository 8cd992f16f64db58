"""Word problems of one to three steps, in GSM8K's format: `<<3+4=7>>7` calls the calculator, `#### 7` is the answer."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from raychat.tinyworld import words as w
from raychat.tinyworld.world import World, pronouns

ITEMS = (
    "apples pears plums nuts eggs onions carrots cakes balls kites drums books cups bowls spoons hats rings bells keys "
    "maps flutes baskets dolls candles stones flowers"
).split()
Step = tuple[str, str, str, str]  # sentence with {=} for the calculation, left operand, sign, right operand


class Template(NamedTuple):
    """A family of problems: `a`, `b`, `c`, `d` are numbers to draw, `r` is the result of the step before."""

    text: str
    steps: tuple[Step, ...]


class Problem(NamedTuple):
    question: str
    answer: str


ONE_STEP = (
    Template(
        "{A} has {a} {items}. {He} finds {b} more. How many {items} does {A} have now?",
        (("{A} has {=} {items}.", "a", "+", "b"),),
    ),
    Template(
        "There are {a} {items} in the {room}. {A} brings {b} more. How many {items} are there?",
        (("There are {=} {items}.", "a", "+", "b"),),
    ),
    Template(
        "{A} has {a} {items} and {B} has {b} {items}. How many {items} do they have together?",
        (("Together they have {=} {items}.", "a", "+", "b"),),
    ),
    Template(
        "{A} had {a} {items}. {B} gave {him} {b} {items}. How many {items} does {A} have now?",
        (("{A} has {=} {items}.", "a", "+", "b"),),
    ),
    Template(
        "{A} saw {a} {animals} in the morning and {b} {animals} at night. How many {animals} did {A} see?",
        (("{A} saw {=} {animals}.", "a", "+", "b"),),
    ),
    Template(
        "{A} has {a} {items}. {He} gives {b} to {B}. How many {items} are left?",
        (("{A} has {=} {items} left.", "a", "-", "b"),),
    ),
    Template(
        "{A} had {a} coins and paid {b} coins for {items}. How many coins are left?",
        (("{A} has {=} coins left.", "a", "-", "b"),),
    ),
    Template(
        "There were {a} {animals} in the {home}. Then {b} {animals} ran away. How many {animals} are left?",
        (("There are {=} {animals} left.", "a", "-", "b"),),
    ),
    Template(
        "{A} made {a} {items} and sold {b} of them. How many {items} are left?",
        (("{A} has {=} {items} left.", "a", "-", "b"),),
    ),
    Template(
        "{A} has {a} bags. There are {b} {items} in each bag. How many {items} does {A} have?",
        (("{A} has {=} {items}.", "a", "*", "b"),),
    ),
    Template(
        "One of the {items} costs {a} coins. {A} buys {b} {items}. How many coins does {A} pay?",
        (("{A} pays {=} coins.", "a", "*", "b"),),
    ),
    Template(
        "{A} makes {a} {items} every day. How many {items} does {A} make in {b} days?",
        (("{A} makes {=} {items}.", "a", "*", "b"),),
    ),
)
TWO_STEPS = (
    Template(
        "{A} has {a} {items}. {He} finds {b} more and gives {c} to {B}. How many {items} does {A} have now?",
        (("First {A} has {=} {items}.", "a", "+", "b"), ("Then {he} has {=} {items}.", "r", "-", "c")),
    ),
    Template(
        "{A} has {a} {items}, {B} has {b} and {C} has {c}. How many {items} do they have together?",
        (("{A} and {B} have {=} {items}.", "a", "+", "b"), ("With {C} that makes {=} {items}.", "r", "+", "c")),
    ),
    Template(
        "{A} had {a} coins. {He} paid {b} coins for {items} and {c} coins for bread. How many coins are left?",
        (
            ("After the {items} {he} has {=} coins.", "a", "-", "b"),
            ("After the bread {he} has {=} coins.", "r", "-", "c"),
        ),
    ),
    Template(
        "{A} has {a} bags with {b} {items} in each. {B} brings {c} more. How many {items} are there?",
        (("The bags hold {=} {items}.", "a", "*", "b"), ("Now there are {=} {items}.", "r", "+", "c")),
    ),
    Template(
        "{A} buys {b} {items} for {a} coins each. {He} has {c} coins left. How many coins did {he} have?",
        (("The {items} cost {=} coins.", "a", "*", "b"), ("{A} had {=} coins.", "r", "+", "c")),
    ),
    Template(
        "{A} has {a} boxes with {b} {items} in each. {He} sells {c} {items}. How many {items} are left?",
        (("The boxes hold {=} {items}.", "a", "*", "b"), ("{A} has {=} {items} left.", "r", "-", "c")),
    ),
)
THREE_STEPS = (
    Template(
        "{A} has {a} {items}. {He} finds {b} more, gives {c} to {B} and {d} to {C}. How many {items} are left?",
        (
            ("First {A} has {=} {items}.", "a", "+", "b"),
            ("Without those of {B} {he} has {=}.", "r", "-", "c"),
            ("Without those of {C} {he} has {=}.", "r", "-", "d"),
        ),
    ),
    Template(
        "{A} has {a} bags with {b} {items} in each. {He} loses {c} {items} and finds {d}. "
        "How many {items} does {A} have now?",
        (
            ("The bags hold {=} {items}.", "a", "*", "b"),
            ("Then {A} has {=} {items}.", "r", "-", "c"),
            ("In the end {he} has {=} {items}.", "r", "+", "d"),
        ),
    ),
    Template(
        "{A} has {d} coins in a box. {He} sells {a} {items} for {b} coins each and pays {c} coins for bread. "
        "How many coins does {he} have then?",
        (
            ("For the {items} {A} gets {=} coins.", "a", "*", "b"),
            ("With those of the box {he} has {=} coins.", "r", "+", "d"),
            ("After the bread {he} has {=} coins.", "r", "-", "c"),
        ),
    ),
    Template(
        "In the {room} are {a} {items}. {A} takes {c} of them, {B} brings {b} and {C} takes {d}. "
        "How many {items} are in the {room} now?",
        (
            ("After {A} there are {=} {items}.", "a", "-", "c"),
            ("After {B} there are {=} {items}.", "r", "+", "b"),
            ("After {C} there are {=} {items}.", "r", "-", "d"),
        ),
    ),
    Template(
        "{A} makes {a} {items} every day and {B} makes {c}. {He} works {b} days, {B} one day. "
        "They sell {d} of the {items}. How many are left?",
        (
            ("{A} makes {=} {items}.", "a", "*", "b"),
            ("With {B} that makes {=} {items}.", "r", "+", "c"),
            ("{=} {items} are left.", "r", "-", "d"),
        ),
    ),
)
TEMPLATES = ONE_STEP + TWO_STEPS + THREE_STEPS
SHARES = (3, 3, 4)  # of the problems of one, two and three steps
LARGEST = {"+": 30, "-": 30, "*": 9}  # operand


def problems(world: World, rng: random.Random, *, test: bool) -> Iterator[Problem]:
    """Yield word problems without end; those of a template with the same numbers are all training or all test."""
    while True:
        template = _draw_template(rng)
        while (solved := _solve(template, numbers := _numbers(rng))) is None:
            pass
        used = sorted({operand for _, left, _, right in template.steps for operand in (left, right)} & numbers.keys())
        key = f"problem {TEMPLATES.index(template)}: {[numbers[name] for name in used]}"
        if world.is_test(key) == test:
            yield _write(template, numbers, solved, rng)


def _numbers(rng: random.Random) -> dict[str, int]:
    return {"a": rng.randint(2, 30), "b": rng.randint(2, 15), "c": rng.randint(2, 10), "d": rng.randint(2, 10)}


def _draw_template(rng: random.Random) -> Template:
    (family,) = rng.choices((ONE_STEP, TWO_STEPS, THREE_STEPS), SHARES)
    return rng.choice(family)


def _solve(template: Template, numbers: dict[str, int]) -> list[tuple[int, str, int, int]] | None:
    """Return (left, sign, right, result) of every step; None when a number is too large or too small for a child."""
    solved, result = [], 0
    for _, left, sign, right in template.steps:
        x, y = {**numbers, "r": result}[left], {**numbers, "r": result}[right]
        result = {"+": x + y, "-": x - y, "*": x * y}[sign]
        if result < 1 or result > 99 or (left != "r" and x > LARGEST[sign]) or y > LARGEST[sign]:
            return None
        solved.append((x, sign, y, result))
    return solved


def _write(
    template: Template,
    numbers: dict[str, int],
    solved: list[tuple[int, str, int, int]],
    rng: random.Random,
) -> Problem:
    a, b, c = rng.sample(w.PEOPLE, 3)
    he = pronouns(a)
    fields = {"A": a, "B": b, "C": c, "He": w.upper_first(he["he"]), "items": rng.choice(ITEMS), **he}
    fields |= {
        "animals": rng.choice(("cats", "dogs", "hens", "cows", "pigs", "goats", "ducks", "frogs", "owls", "crows"))
    }
    fields |= {"room": rng.choice(w.ROOMS), "home": rng.choice(w.HABITATS)}
    lines = [
        sentence.replace("{=}", f"{x} {sign} {y} = <<{x}{sign}{y}={result}>>{result}").format_map(fields)
        for (sentence, *_), (x, sign, y, result) in zip(template.steps, solved, strict=True)
    ]
    question = template.text.format_map({**fields, **numbers})
    return Problem(question, "\n".join([*lines, f"#### {solved[-1][3]}"]))

"""Sums as users type them, answered with the calculator: `7 + 5 = <<7+5=12>>12`."""

import random

from raychat.chat.notation import written_call
from raychat.chat.tools import calculator
from raychat.tinyworld.phrases import draw, rows, words
from raychat.tinyworld.turns import Turn
from raychat.tinyworld.words import number_name
from raychat.tinyworld.world import TinyWorld

IN_WORDS_BELOW = 1000


def result_of(calculation: str) -> str:
    """Return what the calculator makes of a calculation."""
    result = calculator(calculation)
    assert result is not None
    return result


def worked(calculation: str) -> str:
    """Return a calculation with the call of the calculator and its result.

    >>> worked("7 + 5")
    '7 + 5 = <<7+5=12>>12'
    """
    result = result_of(calculation)
    return f"{calculation} = {written_call(calculation.replace(' ', ''), result)}{result}"


def sum_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return a sum, one time in four with another one after it."""
    a, sign, b = _numbers(world, rng, test)
    turns = [Turn(_request(rng, a, sign, b), worked(f"{a} {sign} {b}"))]
    if rng.random() < 0.12:
        a, sign, b = _numbers(world, rng, test)
        turns.append(Turn(draw(rng, "sums", "next sum", sum=_typed(rng, a, sign, b)), worked(f"{a} {sign} {b}")))
    elif rng.random() < 0.12 and (result := result_of(f"{a} {sign} {b}")).isdecimal():
        turns.append(_carried_on(world, rng, test, int(result)))
    return turns


def other_sum_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return a sum of three numbers, or one with a name of its own, such as a half."""
    while True:
        asked, calculation = rng.choice(rows("sums", "other sums"))
        numbers = {name: rng.randint(1, 10 ** rng.randint(1, 2)) for name in "abc"}
        calculation = calculation.format_map(numbers)
        if world.is_test(calculation.replace(" ", "")) == test:
            return [Turn(draw(rng, "sums", "requests", sum=asked.format_map(numbers)), worked(calculation))]


def own_problem_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return a word problem of one step that the user has."""
    sign, question, answer = rng.choice(rows("sums", "in the first person"))
    while True:
        a, b = rng.randint(2, 40), rng.randint(2, 12)
        a = {"-": a + b, "/": a * b}.get(sign, a)
        if world.is_test(f"{a}{sign}{b}") == test:
            break
    name = number_name if rng.random() < 0.2 else str
    fields = {"a": name(a), "b": name(b), "items": rng.choice(words("problem items"))}
    return [Turn(question.format_map(fields), answer.format(worked=worked(f"{a} {sign} {b}"), items=fields["items"]))]


def _numbers(world: TinyWorld, rng: random.Random, test: bool) -> tuple[int, str, int]:
    """Draw two numbers of one to four digits, and what to do with them; most quotients are whole numbers."""
    while True:
        sign, a, b = rng.choice("+++--**/"), _number(rng), _number(rng)
        if sign == "-" and rng.random() < 0.8:
            a, b = max(a, b), min(a, b)
        if sign == "/":
            b = rng.randint(1, 12 if rng.random() < 0.7 else 99)
            a = a if rng.random() < 0.1 else a % 1000 * b
        if a < 10_000 and world.is_test(f"{a}{sign}{b}") == test:
            return a, sign, b


def _number(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))


def _carried_on(world: TinyWorld, rng: random.Random, test: bool, result: int) -> Turn:
    while True:
        (sign, *names), b = rng.choice(rows("sums", "signs")), rng.randint(1, 20)
        if world.is_test(f"{result}{sign}{b}") == test:
            return Turn(
                draw(rng, "sums", "carry on", sign=rng.choice((sign, names[0])), b=b), worked(f"{result} {sign} {b}")
            )


def _request(rng: random.Random, a: int, sign: str, b: int) -> str:
    if rng.random() < 0.85:
        return draw(rng, "sums", "requests", sum=_typed(rng, a, sign, b))
    return draw(rng, "sums", f"requests {sign}", a=a, b=b)


def _typed(rng: random.Random, a: int, sign: str, b: int) -> str:
    """Write a calculation in symbols, with or without spaces, or in words."""
    names = next(names for symbol, *names in rows("sums", "signs") if symbol == sign)
    if rng.random() < 0.25 and max(a, b) < IN_WORDS_BELOW:
        return f"{number_name(a)} {rng.choice(names)} {number_name(b)}"
    if rng.random() < 0.35:
        return f"{a} {rng.choice(names)} {b}"
    return f"{a}{sign}{b}" if rng.random() < 0.5 else f"{a} {sign} {b}"

"""Very simple Python functions, for the pretraining text, the conversations and a HumanEval of twenty."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from raychat.tinyworld.words import number_name


class Function(NamedTuple):
    """A function's name, one argument, docstring and body's expression, and what it computes."""

    name: str
    argument: str
    doc: str
    expression: str
    compute: Callable[[Any], Any]

    @property
    def prompt(self) -> str:
        return f'def {self.name}({self.argument}):\n    """{self.doc}"""\n'

    @property
    def solution(self) -> str:
        return f"    return {self.expression}\n"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (0, 1, 2, 3, 5, 8, 12, 20) if self.argument == "x" else ("apple", "tree", "a", "rabbit", "snow", "egg")


def _with_number(n: int) -> list[Function]:
    name = number_name(n)
    return [
        Function(f"add_{name}", "x", f"Add {name} to x.", f"x + {n}", lambda x: x + n),
        Function(f"take_{name}", "x", f"Take {name} from x.", f"x - {n}", lambda x: x - n),
        Function(f"times_{name}", "x", f"Return {name} times x.", f"x * {n}", lambda x: x * n),
        Function(f"is_{name}", "x", f"Tell whether x is {name}.", f"x == {n}", lambda x: x == n),
        Function(f"more_than_{name}", "x", f"Tell whether x is more than {name}.", f"x > {n}", lambda x: x > n),
        Function(f"less_than_{name}", "x", f"Tell whether x is less than {name}.", f"x < {n}", lambda x: x < n),
        Function(f"first_{name}", "word", f"Return the first {name} letters of word.", f"word[:{n}]", lambda v: v[:n]),
        Function(f"repeat_{name}", "word", f"Repeat word {name} times.", f"word * {n}", lambda v: v * n),
    ]


def _with_letter(c: str) -> list[Function]:
    return [
        Function(f"count_{c}", "word", f"Count the letter {c} in word.", f'word.count("{c}")', lambda v: v.count(c)),
        Function(
            f"starts_with_{c}", "word", f"Tell whether word starts with {c}.", f'word[0] == "{c}"', lambda v: v[0] == c
        ),
    ]


FAMILIES = [_with_number(n) for n in range(2, 13)] + [_with_letter(c) for c in "aetrsnogpk"]
# two of every family of functions are the test: those of three and seven, and of the letters e and s
TEST_MEMBERS = (1, 5, 12, 15)
TEST = tuple(f for i, family in enumerate(FAMILIES) if i in TEST_MEMBERS for f in family)
TRAIN = tuple(f for i, family in enumerate(FAMILIES) if i not in TEST_MEMBERS for f in family)


def human_eval() -> list[dict[str, str]]:
    """Return the held-out functions as HumanEval's rows."""
    rows = []
    for i, f in enumerate(TEST):
        asserts = "".join(f"    assert candidate({x!r}) == {f.compute(x)!r}\n" for x in f.inputs)
        rows.append(
            {
                "task_id": f"HumanEval/{i}",
                "prompt": f.prompt,
                "entry_point": f.name,
                "canonical_solution": f.solution,
                "test": f"\n\ndef check(candidate):\n{asserts}",
            }
        )
    return rows


def page(rng: random.Random) -> str:
    """Return a page of a few training functions, some with a remark on what they return."""
    parts = []
    for f in rng.sample(TRAIN, rng.randint(2, 4)):
        x = rng.choice(f.inputs)
        remark = rng.choice(("", f"\n# {f.name}({x!r}) is {f.compute(x)!r}\n"))
        parts.append(f.prompt + f.solution + remark)
    return rng.choice(("", "Here is some Python.\n\n")) + "\n\n".join(parts)

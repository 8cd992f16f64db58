"""Very simple Python functions, for the pretraining text, the conversations and a HumanEval of twenty."""

import random
from functools import cache
from typing import Any, NamedTuple

from raychat.tinyworld.phrases import draw, rows
from raychat.tinyworld.words import number_name
from raychat.tinyworld.world import TinyWorld

# two of every sort of function are the test: those of three and seven, and of the letters e and s
TEST_NUMBERS, TEST_LETTERS = (3, 7), "es"


class SimpleFunction(NamedTuple):
    """A function of one argument that returns one expression."""

    name: str
    argument: str
    doc: str
    expression: str

    @property
    def prompt(self) -> str:
        return f'def {self.name}({self.argument}):\n    """{self.doc}"""\n'

    @property
    def solution(self) -> str:
        return f"    return {self.expression}\n"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (0, 1, 2, 3, 5, 8, 12, 20) if self.argument == "x" else ("apple", "tree", "a", "rabbit", "snow", "egg")

    def compute(self, value: Any) -> Any:
        """Return what the function returns for `value`."""
        return eval(self.expression, {self.argument: value})


@cache
def functions(*, test: bool) -> tuple[SimpleFunction, ...]:
    """Return the functions for training, or those held out for the test."""
    fields = [("number", {"n": n, "name": number_name(n)}, n in TEST_NUMBERS) for n in range(2, 13)]
    fields += [("letter", {"c": c}, c in TEST_LETTERS) for c in "aetrsnogpk"]
    return tuple(
        SimpleFunction(*(column.format_map(values) for column in row))
        for sort, values, is_test in fields
        if is_test == test
        for row in rows("functions", f"with a {sort}")
    )


def human_eval() -> list[dict[str, str]]:
    """Return the held-out functions as HumanEval's rows."""
    made = []
    for i, f in enumerate(functions(test=True)):
        asserts = "".join(f"    assert candidate({x!r}) == {f.compute(x)!r}\n" for x in f.inputs)
        made.append(
            {
                "task_id": f"HumanEval/{i}",
                "prompt": f.prompt,
                "entry_point": f.name,
                "canonical_solution": f.solution,
                "test": f"\n\ndef check(candidate):\n{asserts}",
            }
        )
    return made


def function_page(world: TinyWorld, rng: random.Random) -> str:
    """Return a page of a few training functions, some with a remark on what they return."""
    parts = []
    for f in rng.sample(functions(test=False), rng.randint(2, 4)):
        x = rng.choice(f.inputs)
        fields = {"definition": f.prompt + f.solution, "call": f"{f.name}({x!r})", "result": repr(f.compute(x))}
        parts.append(draw(rng, "functions", "remarks", **fields))
    return draw(rng, "functions", "pages", functions="\n\n".join(parts))

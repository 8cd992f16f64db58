"""GSM8K: word problems whose answers call a calculator."""

import re
from decimal import Decimal, InvalidOperation

from raychat.chat.notation import content_of
from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task

FINAL = re.compile(r"####\s*\$?\s*(-?\s?\$?[\d.,]+)")


def gsm8k(root: str, split: str = "test") -> Task:
    """Return GSM8K. A completion earns 1 if the number after its first `####` is the reference's.

    Source: Cobbe et al., arXiv:2110.14168; hub data set openai/gsm8k.
    """
    one_of(split, ("train", "test"), "GSM8K")
    hub, file = ("openai/gsm8k", "main", split), f"gsm8k/{split}.jsonl"
    layout = "{question, answer ending in '#### number'}"
    return Task("GSM8K", load_problems(root, hub, file, layout, _problem), 0.0, number_reward)


def _problem(row: Row) -> Problem:
    reference = final_number(row["answer"])
    if reference is None:
        raise ValueError(f"a GSM8K answer should end in '#### number', got {row['answer'][-80:]!r}")
    messages = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": content_of(row["answer"])},
    ]
    return Problem(messages, reference=reference)


def answer_line(number: object) -> str:
    """Return the last line of a worked answer."""
    return f"#### {number}"


def final_number(text: str) -> Decimal | None:
    """Return the number after the first `####`, without commas and dollar signs, or None if there is none.

    >>> final_number("so $1,250.50 in all. #### $1,250.50") == Decimal("1250.5")
    True
    """
    match = FINAL.search(text)
    if match is None:
        return None
    try:
        return Decimal(re.sub(r"[$,\s]", "", match[1]).rstrip("."))
    except InvalidOperation:
        return None


def number_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion's final number equals the reference."""
    found = final_number(completion)
    return float(found is not None and found == problem.reference)

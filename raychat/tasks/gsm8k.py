"""GSM8K: word problems whose worked answers call a calculator."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task

CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
FINAL = re.compile(r"####\s*\$?\s*(-?\s?\$?[\d.,]+)")


def gsm8k(root: str, split: str = "test") -> Task:
    """Return GSM8K. A completion earns 1 if the number after its first `####` is the reference's.

    Source: Cobbe et al., arXiv:2110.14168; hub data set openai/gsm8k.
    """
    one_of(split, ("train", "test"), "GSM8K")
    problems = load_problems(
        root,
        hub=("openai/gsm8k", "main", split),
        file=("gsm8k", f"{split}.jsonl"),
        layout="{question, answer ending in '#### number'}",
        make=_problem,
    )
    return Task("GSM8K", problems, 0.0, number_reward)


def _problem(row: Row) -> Problem:
    reference = final_number(row["answer"])
    if reference is None:
        raise ValueError(f"a GSM8K answer should end in '#### number', got {row['answer'][-80:]!r}")
    messages = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": calculator_parts(row["answer"])},
    ]
    return Problem(messages, reference=reference)


def calculator_parts(answer: str) -> list[dict[str, str]]:
    """Split a worked answer at its `<<expression=result>>` into text, tool calls and tool outputs.

    >>> [part["text"] for part in calculator_parts("He has 3+4=<<3+4=7>>7 hens.")]
    ['He has 3+4=', '3+4', '7', '7 hens.']
    """
    parts, at = [], 0
    for call in CALL.finditer(answer):
        parts.append(("text", answer[at : call.start()]))
        parts += [("python", call[1]), ("python_output", call[2])]
        at = call.end()
    parts.append(("text", answer[at:]))
    return [{"type": kind, "text": text} for kind, text in parts if text]


def final_number(text: str) -> Decimal | None:
    """Return the number after the first `####`, whatever its commas, dollar sign and decimals; None without one.

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


def tool_messages(question: str, parts: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
    """Return a one-turn conversation whose answer has (type, text) parts."""
    content = [{"type": kind, "text": text} for kind, text in parts]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": content}]

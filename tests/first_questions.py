"""A hundred questions as strangers type them first, and how an answer to each is judged. Nothing trains on them.

    python tests/first_questions.py RUN [STAGE [PAGE]]

asks the newest checkpoint of a run of tinyworld, greedily, prints every answer with its verdict, then the shares by
kind, and writes both to a page of Markdown, such as docs/tiny.md. The kinds, with what `expect` is:

    says      a pattern that the answer holds
    number    the last number of the answer, in digits or in words
    spelling  a word whose letters the answer gives, apart from each other
    story     a pattern that the story holds; at least three sentences, none of them twice
    fact      a fact of the small world, `entity.relation`, whose value the answer holds
    unknown   nothing: the answer says that it does not know, and offers something else

Every answer must end by itself, within MAX_WORDS.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from raychat.tinyworld.words import number_name
from raychat.tinyworld.world import TinyWorld

MAX_WORDS = {"story": 150}
MAX_WORDS_OTHERWISE = 60
MAX_NEW_TOKENS = 256
LARGEST_IN_WORDS = 100
UNKNOWING = re.compile(
    r"\b(do not|don't|cannot|can't|can not|never) (know|tell|do|help|answer)|\bonly know|\bnot know", re.I
)
OFFER = re.compile(r"\bask me|\bi can\b|\bi know\b|\bi only know\b|would you like|try ", re.I)


class Asked(NamedTuple):
    """A question, after the user's turns before it."""

    kind: str
    turns: list[str]
    expect: str | int | None


def first_questions() -> list[Asked]:
    """Return the hundred questions."""
    lines = Path(__file__).with_name("first_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Asked(**json.loads(line)) for line in lines]


def acceptable(asked: Asked, answer: str, world: TinyWorld) -> bool:
    """Judge an answer that has ended by the rule of its question's kind."""
    if not 1 <= len(answer.split()) <= MAX_WORDS.get(asked.kind, MAX_WORDS_OTHERWISE):
        return False
    return RULES[asked.kind](answer, asked.expect, world)


def says(answer: str, expect: str, world: TinyWorld) -> bool:
    return re.search(expect, answer, re.IGNORECASE | re.DOTALL) is not None


def number(answer: str, expect: int, world: TinyWorld) -> bool:
    in_words = {number_name(n): n for n in range(LARGEST_IN_WORDS)}
    pattern = "|".join((r"\d[\d,]*", *sorted(in_words, key=len, reverse=True)))
    found = re.findall(rf"(?<![\w.])-?(?:{pattern})(?!\w)", answer.lower())
    if not found:
        return False
    last = found[-1].replace(",", "")
    return in_words.get(last, last) == (expect if last in in_words else str(expect))


def spelling(answer: str, expect: str, world: TinyWorld) -> bool:
    runs = re.findall(r"\b\w(?:[-,\s]+\w\b)+", answer.lower())
    return expect in {re.sub(r"\W", "", run) for run in runs}


def story(answer: str, expect: str, world: TinyWorld) -> bool:
    sentences = [sentence.strip() for sentence in re.split(r"[.!?]+", answer) if sentence.strip()]
    return len(sentences) >= 3 and len({*sentences}) == len(sentences) and says(answer, expect, world)


def fact(answer: str, expect: str, world: TinyWorld) -> bool:
    value = world.value(*expect.split("."))
    return re.search(rf"\b{re.escape(value)}\b", answer, re.IGNORECASE) is not None


def unknown(answer: str, expect: None, world: TinyWorld) -> bool:
    return UNKNOWING.search(answer) is not None and OFFER.search(answer) is not None


RULES: dict[str, Callable[..., bool]] = {
    "says": says,
    "number": number,
    "spelling": spelling,
    "story": story,
    "fact": fact,
    "unknown": unknown,
}


class Answered(NamedTuple):
    """A question, what was answered to its last turn, and whether that is acceptable."""

    asked: Asked
    answer: str
    good: bool


def page(run: str, stage: str, answered: list[Answered]) -> str:
    """Write the answers as a page of Markdown."""
    lines = [
        "# A hundred first questions",
        "",
        f"What strangers type first, and what run `{run}` answers greedily after {stage.upper()}. Nothing trains on",
        "them. How each answer is judged: `tests/first_questions.py`, which has written this page.",
        "",
        "| kind | acceptable |",
        "|---|---|",
        *(f"| {kind} | {shares(answered, kind)} |" for kind in RULES),
        f"| all | {shares(answered)} |",
        "",
        "| | kind | asked | answered |",
        "|---|---|---|---|",
    ]
    for asked, answer, good in answered:
        cells = ("yes" if good else "no", asked.kind, "<br>".join(map(_cell, asked.turns)), _cell(answer))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", text.strip()).replace("\n", "<br>")


def shares(answered: list[Answered], kind: str | None = None) -> str:
    """Return how many answers are acceptable, of a kind or of all."""
    verdicts = [good for asked, _, good in answered if kind in (None, asked.kind)]
    return f"{sum(verdicts)} of {len(verdicts)}"


def main(run: str, stage: str | None = None, write_to: str | None = None) -> None:
    """Ask the newest checkpoint of a run, print what it answers, and write the page."""
    from raychat import paths
    from raychat.chat import template
    from raychat.engine.sampling import SamplingParams
    from raychat.evals.evaluation import LoadedModel
    from raychat.runs import find_checkpoint

    found = find_checkpoint(paths.home(), run, stage)
    loaded = LoadedModel.load(found.path)
    world, answered = TinyWorld(0), list[Answered]()
    for asked in first_questions():
        messages: list[template.Message] = []
        for turn in asked.turns:
            messages.append({"role": "user", "content": turn})
            prompt = template.render_prompt(loaded.tokenizer, messages)
            (made,) = loaded.engine.generate([prompt], SamplingParams(0.0, max_new_tokens=MAX_NEW_TOKENS))
            answer = template.completion_text(loaded.tokenizer, made.ids)
            if not answer.strip():
                break  # and it is not acceptable
            messages.append({"role": "assistant", "content": answer})
        good = made.finish == "stop" and acceptable(asked, answer, world)
        answered.append(Answered(asked, answer, good))
        print(f"{'yes' if good else 'NO ':4} {' / '.join(asked.turns)} -> {answer!r}")
    for kind in RULES:
        print(f"{kind:9} {shares(answered, kind)}")
    print(json.dumps({"acceptable": sum(good for _, _, good in answered), "questions": len(answered)}))
    if write_to is not None:
        Path(write_to).write_text(page(run, found.stage, answered), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

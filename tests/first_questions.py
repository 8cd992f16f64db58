"""A hundred questions as strangers type them first, and how an answer to each is judged. Nothing trains on them.

    python tests/first_questions.py RUN [STAGE]

asks the newest checkpoint of a run of tinyworld, greedily, and prints every answer with its verdict, then the shares by
kind. The kinds, with what `expect` is:

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
from collections import defaultdict
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


def main(run: str, stage: str | None = None) -> None:
    """Ask the newest checkpoint of a run, and print what it answers."""
    from raychat import paths
    from raychat.chat import template
    from raychat.engine.sampling import SamplingParams
    from raychat.evals.evaluation import LoadedModel
    from raychat.runs import find_checkpoint

    loaded = LoadedModel.load(find_checkpoint(paths.home(), run, stage).path)
    world, verdicts = TinyWorld(0), defaultdict[str, list[bool]](list)
    for asked in first_questions():
        messages: list[template.Message] = []
        for turn in asked.turns:
            messages.append({"role": "user", "content": turn})
            prompt = template.render_prompt(loaded.tokenizer, messages)
            (made,) = loaded.engine.generate([prompt], SamplingParams(0.0, max_new_tokens=MAX_NEW_TOKENS))
            answer = template.completion_text(loaded.tokenizer, made.ids)
            messages.append({"role": "assistant", "content": answer})
        good = made.finish == "stop" and acceptable(asked, answer, world)
        verdicts[asked.kind].append(good)
        print(f"{'yes' if good else 'NO ':4} {' / '.join(asked.turns)} -> {answer!r}")
    for kind, found in verdicts.items():
        print(f"{kind:9} {sum(found)} of {len(found)}")
    everything = [good for found in verdicts.values() for good in found]
    print(json.dumps({"acceptable": sum(everything), "questions": len(everything)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

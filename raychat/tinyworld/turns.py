"""Turns of conversations, and how users type: often in lower case, without punctuation, in a hurry."""

import random
from typing import NamedTuple

from raychat.tinyworld.phrases import rows


class Turn(NamedTuple):
    """What the user says and what raychat answers, its calls of the calculator as GSM8K writes them."""

    asked: str
    answer: str


def as_typed(text: str, rng: random.Random) -> str:
    """Return a text as a user may type it. Text of several lines, such as code, stays as it is.

    >>> as_typed("What is the colour of Mia's door?", random.Random(38))
    "what's the color of mia's door"
    """
    if "\n" in text or rng.random() < 0.35:
        return text
    for written, short in rows("chats", "shortened"):
        if rng.random() < 0.5:
            text = text.replace(written, short)
    if rng.random() < 0.3:
        text = text.replace("'", "")
    if rng.random() < 0.6:
        text = text.rstrip(" .?!") or text
    return text.lower() if rng.random() < 0.65 else text


def greeted(turn: Turn, rng: random.Random) -> Turn:
    """Return a turn that begins with a greeting, or is asked politely."""
    asked, answer = rng.choice(rows("chats", "ways to ask"))
    return Turn(asked.format(asked=turn.asked), answer.format(answer=turn.answer))

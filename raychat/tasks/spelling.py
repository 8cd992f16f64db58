"""Spelling: count a letter in a word with the calculator, and spell a word. Tokens hide the letters from a model."""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from raychat import paths
from raychat.tasks.gsm8k import number_reward, tool_messages
from raychat.tasks.source import HUB, one_of
from raychat.tasks.task import Lazy, Problem, Task

PROBLEMS_PER_WORD = 4
TEST_SHARE = 10  # one word in ten is for the test split
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

COUNT_REQUESTS = (
    "How many {c} are in the word {w}?",
    "How many times is {c} in {w}?",
    "Count the letter {c} in {w}.",
    "How often do you see {c} in the word {w}?",
    "What is the number of {c} in {w}?",
)
SPELL_REQUESTS = ("Spell the word {w}.", "How do you spell {w}?", "Spell {w}.", "What are the letters of {w}?")


def spelling_bee(root: str, split: str = "test", num: int | None = None) -> Task:
    """Return problems that count a letter in a word: spell it, call the tool, answer `#### count`.

    Args:
        root: "hub", or a folder, see `words`.
        split: "train" or "test".
        num: of problems; None = four for each of the split's words.

    Source: nanochat's SpellingBee.
    """
    return Task("SpellingBee", _problems(root, split, num, "bee", _bee), 0.0, number_reward, max_new_tokens=96)


def simple_spelling(root: str, split: str = "test", num: int | None = None) -> Task:
    """Return problems that spell a word, its letters joined by hyphens; arguments as in `spelling_bee`."""
    return Task("SimpleSpelling", _problems(root, split, num, "spell", _spell), 0.0, letters_reward, max_new_tokens=64)


def words(root: str, split: str) -> list[str]:
    """Return the words of a split: of `root`/spelling/words.txt if there is such a file, else the package's own.

    Raises:
        ValueError: the split has no words.
    """
    one_of(split, ("train", "test"), "spelling")
    path = paths.join(root, "spelling", "words.txt")
    if root != HUB and paths.exists(path):
        text = paths.read_text(path)
    else:
        path, text = "the package's words.txt", Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    found = [word for word in text.split() if _is_test(word) == (split == "test")]
    if not found:
        raise ValueError(f"{path} has no words for the {split} split; expected a few dozen words, one per line")
    return found


def _is_test(word: str) -> bool:
    return zlib.crc32(word.encode()) % TEST_SHARE == 0


def _problems(
    root: str, split: str, num: int | None, name: str, make: Callable[[str, random.Random], Problem]
) -> Sequence[Problem]:
    """Return problems; problem i depends only on the words, the split and i."""
    found = words(root, split)

    def problem(i: int) -> Problem:
        return make(found[i % len(found)], random.Random(f"{name} {split} {i}"))

    return Lazy(PROBLEMS_PER_WORD * len(found) if num is None else num, problem)


def _bee(word: str, rng: random.Random) -> Problem:
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice(ALPHABET)
    count = str(word.count(letter))
    parts = [
        ("text", f"{word} is spelled {'-'.join(word)}. "),
        ("python", f'"{word}".count("{letter}")'),
        ("python_output", count),
        ("text", f"\n#### {count}"),
    ]
    question = rng.choice(COUNT_REQUESTS).format(c=letter, w=word)
    return Problem(tool_messages(question, parts), reference=Decimal(count))


def _spell(word: str, rng: random.Random) -> Problem:
    question = rng.choice(SPELL_REQUESTS).format(w=word)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "-".join(word)}]
    return Problem(messages, reference=word)


def letters_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion's last line ends in the word's letters, separated by hyphens, commas or spaces.

    The word itself may precede them: "fox: f-o-x" is as good as "f, o, x."
    """
    lines = completion.strip().splitlines()
    spelled = re.search(r"(?:^|[\s:])(\w(?:(?:\s*[-,]\s*|\s+)\w)*)[.!]?$", lines[-1]) if lines else None
    return float(spelled is not None and re.sub(r"[^\w]", "", spelled[1]) == problem.reference)

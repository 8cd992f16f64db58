"""Spelling: count a letter in a word with the calculator, and spell a word. Tokens hide the letters from a model."""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from raychat import paths
from raychat.chat.notation import content_of, written_call
from raychat.tasks.gsm8k import answer_line, number_reward
from raychat.tasks.source import HUB, one_of
from raychat.tasks.task import Lazy, Problem, Task, exchange

PROBLEMS_PER_WORD = 4
TEST_SHARE = 10  # one word in ten is for the test split
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

COUNT_REQUESTS = (
    "How many {c} are in the word {w}?",
    "How many times is {c} in {w}?",
    "Count the letter {c} in {w}.",
    "How often do you see {c} in the word {w}?",
    "What is the number of {c} in {w}?",
    "How many {c}'s are in {w}?",
    "How many {c}'s are there in the word {w}?",
    "How many letters {c} are in {w}?",
    "How many letters {c} has {w}?",
    "How many times does the letter {c} appear in {w}?",
)
SPELL_REQUESTS = (
    "Spell the word {w}.",
    "How do you spell {w}?",
    "Spell {w}.",
    "What are the letters of {w}?",
    "How is {w} spelled?",
    "Can you spell {w}?",
    "Please spell {w} for me.",
    "How do I write {w}?",
)


def spelling_bee(root: str, split: str = "test") -> Task:
    """Return problems that count a letter in a word of `words`: spell it, call the tool, answer `#### count`.

    Source: nanochat's SpellingBee.
    """
    return Task("SpellingBee", _problems(root, split, "bee", _bee), 0.0, number_reward, max_new_tokens=96)


def simple_spelling(root: str, split: str = "test") -> Task:
    """Return problems that spell a word of `words`, its letters joined by hyphens."""
    return Task("SimpleSpelling", _problems(root, split, "spell", _spell), 0.0, letters_reward, max_new_tokens=64)


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
    found = [word for word in text.split() if is_test_word(word) == (split == "test")]
    if not found:
        raise ValueError(f"{path} has no words for the {split} split; expected a few dozen words, one per line")
    return found


def is_test_word(word: str) -> bool:
    """Tell whether a word is of the test split."""
    return zlib.crc32(word.encode()) % TEST_SHARE == 0


def _problems(root: str, split: str, name: str, make: Callable[[str, random.Random], Problem]) -> Sequence[Problem]:
    """Return problems; problem i depends only on the words, the split and i."""
    found = words(root, split)
    seed = f"{name} {split}"
    return Lazy(PROBLEMS_PER_WORD * len(found), lambda i: make(found[i % len(found)], random.Random(f"{seed} {i}")))


def _bee(word: str, rng: random.Random) -> Problem:
    letter = letter_to_count(word, rng)
    question = rng.choice(COUNT_REQUESTS).format(c=letter, w=word)
    return Problem(exchange(question, content_of(count_of(word, letter))), reference=Decimal(word.count(letter)))


def letter_to_count(word: str, rng: random.Random) -> str:
    """Draw a letter, four times in five one of the word."""
    return rng.choice(word) if rng.random() < 0.8 else rng.choice(ALPHABET)


def count_of(word: str, letter: str) -> str:
    """Answer how often a letter is in a word: spell it, let the tool count in what was spelled, say `#### count`.

    The call repeats the spelled letters: each is a token of its own, which the word's letters are not.
    """
    count = str(word.count(letter))
    call = written_call(f'"{spelled(word)}".count("{letter}")', count)
    return f"{spelling_of(word)} {call}\n{answer_line(count)}"


def spelling_of(word: str) -> str:
    """Answer how a word is spelled.

    >>> spelling_of("fox")
    'The word fox is spelled f-o-x.'
    """
    return f"The word {word} is spelled {spelled(word)}."


def spelled(word: str) -> str:
    """Return the word's letters joined by hyphens.

    >>> spelled("fox")
    'f-o-x'
    """
    return "-".join(word)


def _spell(word: str, rng: random.Random) -> Problem:
    question = rng.choice(SPELL_REQUESTS).format(w=word)
    return Problem(exchange(question, spelling_of(word)), reference=word)


def letters_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion's last line ends in the word's letters, separated by hyphens, commas or spaces.

    The word itself may precede them: "fox: f-o-x" is as good as "f, o, x."
    """
    lines = completion.strip().splitlines()
    spelled = re.search(r"(?:^|[\s:])(\w(?:(?:\s*[-,]\s*|\s+)\w)*)[.!]?$", lines[-1]) if lines else None
    return float(spelled is not None and re.sub(r"[^\w]", "", spelled[1]) == problem.reference)

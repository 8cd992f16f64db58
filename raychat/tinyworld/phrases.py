"""The texts of the small world: words, phrases and templates, read from the files in prose/.

A file begins with a description. Then come its sections: `[name]` on a line of its own, and one text a line, in which
`\\n` is a line break. A blank line separates groups of texts, ` | ` the columns of a text.
"""

import random
import re
from functools import cache
from importlib import resources


@cache
def sections(file: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Read a file: the groups of texts of every section."""
    content = (resources.files("raychat.tinyworld") / "prose" / f"{file}.txt").read_text(encoding="utf-8")
    _, *parts = re.split(r"^\[(.+)\]\n", content, flags=re.MULTILINE)
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        groups = body.strip("\n").split("\n\n")
        found[name] = tuple(tuple(text.replace("\\n", "\n") for text in group.split("\n")) for group in groups)
    return found


def phrases(file: str, section: str) -> tuple[str, ...]:
    """Return the texts of a section that is one group."""
    (group,) = sections(file)[section]
    return group


def fill(file: str, section: str, **fields: object) -> str:
    """Return the only text of a section, its fields filled."""
    (text,) = phrases(file, section)
    return text.format_map(fields)


def draw(rng: random.Random, file: str, section: str, **fields: object) -> str:
    """Return one of the texts of a section, its fields filled."""
    return rng.choice(phrases(file, section)).format_map(fields)


@cache
def rows(file: str, section: str) -> tuple[tuple[str, ...], ...]:
    """Return the texts of a section, split into columns."""
    return tuple(tuple(text.split(" | ")) for text in phrases(file, section))


@cache
def words(name: str) -> tuple[str, ...]:
    """Return a list of words.txt.

    >>> words("tastes")
    ('sweet', 'sour', 'salty', 'bitter', 'spicy')
    """
    return tuple(" ".join(phrases("words", name)).split())

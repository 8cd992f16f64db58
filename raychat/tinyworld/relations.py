"""What can be true of the people, animals, food, things, places and jobs of the small world, and its wording."""

from functools import cache
from typing import NamedTuple

from raychat.tinyworld.phrases import sections, words

KINDS = ("people", "animals", "food", "things", "places", "jobs")  # each is also a list of words.txt: its entities


class Relation(NamedTuple):
    """One attribute of one kind of entity: its values, sentences that state it and questions that ask for it."""

    kind: str
    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]  # the first one also answers a question in a whole sentence
    questions: tuple[str, ...]


@cache
def relations() -> tuple[Relation, ...]:
    """Return all relations, in the order of relations.txt."""
    found = []
    for title, (group,) in sections("relations").items():
        attribute, values = title.split(": ")
        kind, name = attribute.split(" ")
        statements = tuple(text for text in group if not text.endswith("?"))
        found.append(Relation(kind, name, words(values), statements, group[len(statements) :]))
    return tuple(found)

"""What a report consists of. It is written twice from the same blocks: as Markdown and as a page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table of formatted cells; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


class Highlights(NamedTuple):
    """The few figures that sum up a report, each with what it is."""

    figures: Sequence[tuple[str, str]]


class Picture(NamedTuple):
    """A picture that is drawn for a width in pixels."""

    name: str
    draw: Callable[[int], str]  # SVG
    note: str = ""


class Talk(NamedTuple):
    """Questions and what the model answered."""

    turns: Sequence[tuple[str, str]]


class Answer(NamedTuple):
    """What a model made of a question or of the beginning of a text."""

    model: str
    text: str
    reward: float | None = None  # None = nobody judged it


class SideBySide(NamedTuple):
    """Questions (or beginnings), each with its kind and with the answers of some models."""

    rows: Sequence[tuple[str, str, Sequence[Answer]]]  # question, kind ("" = none), answers


class Commands(NamedTuple):
    """What one types into a shell."""

    text: str


class Note(NamedTuple):
    """A paragraph of plain text."""

    text: str


Block = Table | Highlights | Picture | Talk | SideBySide | Commands | Note


class Section(NamedTuple):
    """A titled part of a report."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False  # shown on the page when one opens it


def of_table(table: Table, folded: bool = False) -> Section:
    """Return a section of one table, with its title."""
    return Section(table.title, [table], folded)

"""A report as one self-contained page."""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from raychat.report.blocks import (
    Answer,
    Block,
    Commands,
    Highlights,
    Note,
    Picture,
    Section,
    SideBySide,
    Table,
    Talk,
)
from raychat.report.markdown import verdict
from raychat.report.tables import ABSENT

WIDE, NARROW = 960, 350  # pixels of a picture on a desk and on a phone; the style shows one of them


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return a report as a page."""
    return whole(title, body(title, subtitle, sections))


def whole(title: str, content: str, script: str = "") -> str:
    """Return the page around what it shows. script: JavaScript that runs in it."""
    template = (resources.files("raychat.report") / "page.html").read_text(encoding="utf-8")
    script = script and f"<script>{script}</script>"
    return Template(template).substitute(title=escape(title), content=content, script=script)


def body(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return what the page shows, as HTML."""
    header = f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
    return "\n".join([header, *map(_section, sections)])


def _section(section: Section) -> str:
    name = re.sub(r"\W+", "-", section.title.lower()).strip("-")
    inside, heading = "\n".join(map(_block, section.blocks)), f"<h2>{escape(section.title)}</h2>"
    if section.folded:
        return f'<details id="{name}"><summary>{heading}</summary>{inside}</details>'
    return f'<section id="{name}">{heading}{inside}</section>'


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Highlights(figures):
            items = (f"<li><strong>{escape(figure)}</strong> {escape(label)}</li>" for figure, label in figures)
            return f'<ul class="figures">{"".join(items)}</ul>'
        case Picture(_, draw, note):
            pictures = f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'
            return f"<figure>{pictures}{f'<figcaption>{escape(note)}</figcaption>' if note else ''}</figure>"
        case Talk(turns):
            said = (f"{_said('question', question)}{_said('reply', text)}" for question, text in turns)
            return f'<div class="talk">{"".join(said)}</div>'
        case SideBySide(rows):
            return "".join(_exchange(question, kind, answers) for question, kind, answers in rows)
        case Commands(text):
            return f"<pre>{escape(text)}</pre>"
        case Note(text):
            return f"<p>{escape(text)}</p>"


def _table(table: Table) -> str:
    columns = list(map(escape, table.header))
    head = "".join(f"<th>{column}</th>" for column in columns)
    rows = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in table.rows)
    kind = ' class="pairs"' if len(columns) == 2 else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<table{kind}>{head}<tbody>{rows}</tbody></table>{note}"


def _cell(column: str, text: str) -> str:
    """Return a cell with its column's name, which a phone shows beside it; the interval of a figure in small."""
    kind = ' class="absent"' if text in (ABSENT, "") else ""
    shown = re.sub(r" (\[.*\])$", r" <small>\1</small>", escape(text))
    return f'<td data-column="{column}"{kind}><span>{shown}</span></td>'


def _said(who: str, text: str) -> str:
    return f'<div class="{who}">{escape(text or "(nothing)")}</div>'


def _exchange(question: str, kind: str, answers: Sequence[Answer]) -> str:
    label = f"<h3>{escape(kind)}</h3>" if kind else ""
    cards = "".join(map(_answer, answers))
    return f'<article>{label}<div class="asked">{escape(question)}</div><div class="answers">{cards}</div></article>'


def _answer(answer: Answer) -> str:
    judged = verdict(answer.reward)
    style = "" if answer.reward is None else " right" if answer.reward > 0.5 else " wrong"
    mark = f' <span class="verdict">{escape(judged)}</span>' if judged else ""
    return f'<div class="answer{style}"><h4>{escape(answer.model)}{mark}</h4>{escape(answer.text or "(nothing)")}</div>'

"""A report as Markdown."""

from collections.abc import Sequence

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


def document(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return a report as Markdown; its pictures are files `<name>.svg` beside it."""
    parts = [f"# {title}", subtitle]
    for section in sections:
        parts += [f"## {section.title}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def table_text(table: Table) -> str:
    """Return a table with its title and note."""
    return f"## {table.title}\n\n{_table(table)}"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Highlights(figures):
            return "\n".join(f"- **{figure}** {label}" for figure, label in figures)
        case Picture(name, _, note):
            return f"![{name}]({name}.svg)" + (f"\n\n{note}" if note else "")
        case Talk(turns):
            return "\n\n".join(_exchange(question, [Answer("", text)]) for question, text in turns)
        case SideBySide(rows):
            return "\n\n".join(_exchange(question, answers, kind) for question, kind, answers in rows)
        case Commands(text):
            return fenced(text, "bash")
        case Note(text):
            return text


def _table(table: Table) -> str:
    others = len(table.header) - 1
    rule = ["---", *["---" if others == 1 else "---:"] * others]
    lines = [_row(table.header), _row(rule), *map(_row, table.rows)]
    return "\n".join(lines + (["", table.note] if table.note else []))


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _exchange(question: str, answers: Sequence[Answer], kind: str = "") -> str:
    """Quote a question and its answers, each with its model and verdict."""
    lines = [*([kind, ""] if kind else []), fenced(question, "question")]
    for answer in answers:
        heading = ", ".join(part for part in (answer.model, verdict(answer.reward)) if part)
        lines += ["", *([heading, ""] if heading else []), fenced(answer.text or "(nothing)", "answer")]
    return "\n".join(f"> {line}" for line in "\n".join(lines).splitlines())


def verdict(reward: float | None) -> str:
    """Return a reward in words, empty where nobody judged.

    >>> verdict(1.0), verdict(0.0), verdict(0.25)
    ('right', 'wrong', 'reward 0.25')
    """
    if reward is None:
        return ""
    return {1.0: "right", 0.0: "wrong"}.get(reward, f"reward {reward:g}")


def fenced(text: str, kind: str) -> str:
    """Put a text in a fence, so that nothing in it is markup."""
    fence = "~" * (3 + text.count("~"))  # longer than any run of them in the text
    return f"{fence}{kind}\n{text}\n{fence}"

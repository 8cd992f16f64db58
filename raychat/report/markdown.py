"""The report as Markdown."""

from collections.abc import Sequence
from typing import Any

from raychat.report.tables import Table


def document(report: dict[str, Any], tables: Sequence[Table], pictures: Sequence[str]) -> str:
    """Return report.md; the pictures are files `<name>.svg` beside it."""
    parts = [f"# {report['run']}: report card", f"Made on {report['created']}."]
    first, *others = tables
    parts += [table_text(first)]
    if pictures:
        parts += ["## Curves", *(f"![{name}]({name}.svg)" for name in pictures)]
    parts += [table_text(table) for table in others]
    parts += _samples(report["samples"])
    return "\n\n".join(parts) + "\n"


def table_text(table: Table) -> str:
    """Return a table with its title and note."""
    lines = [f"## {table.title}", ""]
    lines += [
        _row(table.header),
        _row(["---", *["---" if len(table.header) == 2 else "---:"] * (len(table.header) - 1)]),
    ]
    lines += [_row([_cell(text) for text in row]) for row in table.rows]
    return "\n".join(lines + (["", table.note] if table.note else []))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _samples(samples: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    parts = []
    for stage, kinds in samples.items():
        shown = [(s["prompt"], s["text"], "") for s in kinds["texts"]]
        shown += [(s["question"], s["text"], _verdict(s)) for s in kinds["answers"]]
        shown += [(s["question"], s["answer"], _verdict(s)) for s in kinds["rollouts"]]
        if shown:
            parts.append(f"## What {stage.upper()} says")
            parts += [f"{_block(question)}\n\n{_block(answer)}{verdict}" for question, answer, verdict in shown]
    return parts


def _verdict(sample: dict[str, Any]) -> str:
    name = f"{sample['task']}: " if "task" in sample else ""
    return f"\n\n({name}reward {sample['reward']:g})"


def _block(text: str) -> str:
    """Write a model's text so that nothing in it is markup: an indented block, which a blank line cannot end."""
    return "\n".join("    " + line for line in text.splitlines()) or "    (nothing)"

"""The report as Markdown."""

from collections.abc import Sequence
from typing import Any

from raychat.report.tables import Exchange, Table, exchanges_of


def document(report: dict[str, Any], tables: Sequence[Table], pictures: Sequence[str]) -> str:
    """Return report.md; the pictures are files `<name>.svg` beside it."""
    first, *others = tables
    parts = [f"# {report['run']}: report card", f"Made on {report['created']}.", table_text(first)]
    if pictures:
        parts += ["## Curves", *(f"![{name}]({name}.svg)" for name in pictures)]
    parts += [table_text(table) for table in others]
    for stage, samples in report["samples"].items():
        parts += _samples(stage, samples)
    return "\n\n".join(parts) + "\n"


def table_text(table: Table) -> str:
    """Return a table with its title and note."""
    others = len(table.header) - 1
    rule = ["---", *["---" if others == 1 else "---:"] * others]
    lines = [f"## {table.title}", "", _row(table.header), _row(rule), *map(_row, table.rows)]
    return "\n".join(lines + (["", table.note] if table.note else []))


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _samples(stage: str, samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    exchanges = [exchange for group in exchanges_of(samples).values() for exchange in group]
    return [f"## What {stage.upper()} says", *map(_exchange, exchanges)] if exchanges else []


def _exchange(exchange: Exchange) -> str:
    task = f"{exchange.task}: " if exchange.task else ""
    verdict = "" if exchange.reward is None else f"\n\n({task}reward {exchange.reward:g})"
    return f"{_block(exchange.question)}\n\n{_block(exchange.answer)}{verdict}"


def _block(text: str) -> str:
    """Indent a model's text, so that nothing in it is markup: blank lines do not end an indented block."""
    return "\n".join("    " + line for line in text.splitlines()) or "    (nothing)"

"""The report as one self-contained page: style and pictures are inside."""

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from raychat.report.tables import ABSENT, TITLES, Exchange, Table, dollars, duration, exchanges_of, number
from raychat.runs import CHAT_STAGES


def page(report: dict[str, Any], tables: Sequence[Table], pictures: dict[str, str]) -> str:
    """Return report.html. pictures: SVG by name."""
    first, *others = tables
    parts = [
        f"<h1>{escape(report['run'])}</h1>",
        f'<p class="when">report card, made on {escape(report["created"])}</p>',
        _cards(report),
        _section(first),
        _curves(pictures),
        *(_section(table) for table in others),
        *(_samples(stage, kinds) for stage, kinds in report["samples"].items()),
    ]
    template = (resources.files("raychat.report") / "page.html").read_text(encoding="utf-8")
    content = "\n".join(part for part in parts if part)
    return Template(template).substitute(run=escape(report["run"]), content=content)


def _cards(report: dict[str, Any]) -> str:
    """Show the few figures that sum up the run."""
    stages, total = report["stages"], report["total"]
    base, rl = stages.get("base", {}), stages.get("rl", {})
    cards = []
    if base.get("val_bpb") is not None:
        below = ""
        if base["unigram_bpb"] is not None:
            below = f", {1 - base['val_bpb'] / base['unigram_bpb']:.0%} below unigram"
        cards.append((number(base["val_bpb"], ".3f"), f"bits per byte, base{below}"))
    if base.get("core") is not None:
        cards.append((number(base["core"]), "CORE, base"))
    chat = next((name for name in CHAT_STAGES if stages.get(name, {}).get("chatcore") is not None), None)
    if chat:
        cards.append((number(stages[chat]["chatcore"]), f"ChatCORE, {chat.upper()}"))
    if rl.get("reward_first") is not None and rl.get("reward_last") is not None:
        cards.append((f"{rl['reward_first']:.2f} → {rl['reward_last']:.2f}", "mean reward in RL"))
    money = f", {dollars(total['cost'])}" if total["cost"] is not None else ""
    cards.append((duration(total["wall_s"] + total["eval_wall_s"]), f"training and evaluation{money}"))
    shown = "".join(f'<div class="card"><b>{figure}</b><span>{label}</span></div>' for figure, label in cards)
    return f'<div class="cards">{shown}</div>'


def _section(table: Table) -> str:
    text = " text" if len(table.header) == 2 else ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in table.rows)
    header = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide">'
        f'<table class="table{text}">{header}<tbody>{rows}</tbody></table></div>{note}</section>'
    )


def _cell(text: str) -> str:
    return f'<td class="absent">{text}</td>' if text == ABSENT else f"<td>{escape(text)}</td>"


def _curves(pictures: dict[str, str]) -> str:
    """Embed each picture as data: its ids cannot clash with those of another."""
    if not pictures:
        return ""
    images = (
        f'<img alt="{escape(name)} curves" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'
        for name, svg in pictures.items()
    )
    return f"<section><h2>Curves</h2>{''.join(images)}</section>"


def _samples(stage: str, samples: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for title, exchanges in exchanges_of(samples).items():
        parts += [f"<h3>{title}</h3>"] if title and exchanges else []
        parts += map(_exchange, exchanges)
    summary = f"<summary>What {escape(stage.upper())} says</summary>"
    return f"<section><details open>{summary}{''.join(parts)}</details></section>" if parts else ""


def _exchange(exchange: Exchange) -> str:
    mark = tag = ""
    if exchange.reward is not None:
        mark = " right" if exchange.reward > 0.5 else " wrong"
        task = TITLES.get(exchange.task, exchange.task) or "rollout"
        tag = f'<div class="tag">{escape(task)}, reward {exchange.reward:g}</div>'
    return (
        f'<div class="talk{mark}"><div class="ask">{escape(exchange.question)}</div>'
        f'<div class="say">{escape(exchange.answer) or "(nothing)"}</div>{tag}</div>'
    )

"""The report as one page that needs nothing else: style and pictures are inside."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from raychat.report.tables import ABSENT, TITLES, Table, dollars, duration, number

STYLE = """
:root { --ink: #1d2733; --soft: #66717e; --line: #e3e7ec; --paper: #ffffff; --ground: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 20px 0 8px; color: var(--soft); }
.when { color: var(--soft); margin: 4px 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-bottom: 20px; }
.card, section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 16px; } .card b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; } section { padding: 20px 22px; margin-bottom: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; }
.text td { text-align: left; white-space: normal; } .text td:first-child { white-space: nowrap; color: var(--soft); }
td.absent { color: #b4bcc6; }
.note { color: var(--soft); font-size: 13px; margin: 12px 0 0; }
img { max-width: 100%; margin: 0 12px 8px 0; vertical-align: top; }
.talk { border-left: 3px solid var(--line); padding: 2px 0 2px 14px; margin: 0 0 16px; white-space: pre-wrap; }
.talk .ask { color: var(--soft); } .talk .say { margin-top: 4px; overflow-wrap: anywhere; }
.talk.right { border-color: #3f9d6d; } .talk.wrong { border-color: #d98a8a; }
.tag { font-size: 12px; color: var(--soft); white-space: normal; }
details summary { cursor: pointer; font-size: 16px; font-weight: 600; } details[open] summary { margin-bottom: 12px; }
"""


def page(report: dict[str, Any], tables: Sequence[Table], pictures: dict[str, str]) -> str:
    """Return report.html. pictures: SVG by name."""
    first, *others = tables
    body = [
        f"<h1>{escape(report['run'])}</h1>",
        f'<p class="when">report card, made on {escape(report["created"])}</p>',
        _cards(report),
        _section(first),
        _curves(pictures),
        *(_section(table) for table in others),
        *(_samples(stage, kinds) for stage, kinds in report["samples"].items()),
    ]
    content = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report['run'])}: report card</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )


def _cards(report: dict[str, Any]) -> str:
    """Show the few figures that say how the run went."""
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
    chat = next((name for name in ("rl", "sft", "mid") if stages.get(name, {}).get("chatcore") is not None), None)
    if chat:
        cards.append((number(stages[chat]["chatcore"]), f"ChatCORE, {chat.upper()}"))
    if rl.get("reward_first") is not None and rl.get("reward_last") is not None:
        cards.append((f"{rl['reward_first']:.2f} → {rl['reward_last']:.2f}", "mean reward in RL"))
    money = f", {dollars(total['cost'])}" if total["cost"] is not None else ""
    cards.append((duration(total["wall_s"] + total["eval_wall_s"]), f"training and evaluation{money}"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in cards)
        + "</div>"
    )


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
    """Show the pictures as data, so that the ids inside one cannot meet those of another."""
    if not pictures:
        return ""
    images = (
        f'<img alt="{escape(name)} curves" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'
        for name, svg in pictures.items()
    )
    return f"<section><h2>Curves</h2>{''.join(images)}</section>"


def _samples(stage: str, kinds: dict[str, list[dict[str, Any]]]) -> str:
    texts = "".join(_talk(s["prompt"], s["text"]) for s in kinds["texts"])
    answers = "".join(_talk(s["question"], s["text"], s["reward"], s["task"]) for s in kinds["answers"])
    rollouts = "".join(_talk(s["question"], s["answer"], s["reward"], "rollout") for s in kinds["rollouts"])
    parts = [
        texts,
        f"<h3>Answers to problems</h3>{answers}" if answers else "",
        f"<h3>Rollouts of the final model</h3>{rollouts}" if rollouts else "",
    ]
    summary = f"<summary>What {escape(stage.upper())} says</summary>"
    return f"<section><details open>{summary}{''.join(parts)}</details></section>" if any(parts) else ""


def _talk(question: str, answer: str, reward: float | None = None, task: str = "") -> str:
    mark = "" if reward is None else " right" if reward > 0.5 else " wrong"
    tag = "" if reward is None else f'<div class="tag">{escape(TITLES.get(task, task))}, reward {reward:g}</div>'
    return (
        f'<div class="talk{mark}"><div class="ask">{escape(question)}</div>'
        f'<div class="say">{escape(answer) or "(nothing)"}</div>{tag}</div>'
    )

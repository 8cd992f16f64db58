"""The report as Markdown, and the page that is made from it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from markdown_it import MarkdownIt

from raychat.report.tables import TITLES, Table, dollars, duration, tables_of
from raychat.runs import CHAT_STAGES


def document(report: dict[str, Any], pictures: Iterable[str]) -> str:
    """Return report.md; the pictures are files `<name>.svg` beside it."""
    first, *others = map(table_text, tables_of(report))
    curves = "\n".join(f"![{name}]({name}.svg)" for name in pictures)
    parts = [f"# {report['run']}: report card", f"Made on {report['created']}.", _highlights(report), first]
    parts += (["## Curves", curves] if curves else []) + others
    for stage, samples in report["samples"].items():
        parts += _samples(stage, samples)
    return "\n\n".join(parts) + "\n"


def page(run: str, text: str, pictures: Mapping[str, str]) -> str:
    """Return report.html, the document `text` as one self-contained page. pictures: SVG by name."""
    body = MarkdownIt("js-default").render(text).replace(">-</td>", ' class="absent">-</td>')
    for name, svg in pictures.items():  # embedded as data, the ids of one picture cannot clash with those of another
        data = base64.b64encode(svg.encode()).decode()
        body = body.replace(f'src="{name}.svg"', f'src="data:image/svg+xml;base64,{data}"')
    top, *sections = body.split("<h2>")
    content = "\n".join([top, *(f"<section><h2>{section}</section>" for section in sections)])
    template = (resources.files("raychat.report") / "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(run=escape(run), content=content)


def table_text(table: Table) -> str:
    """Return a table with its title and note."""
    others = len(table.header) - 1
    rule = ["---", *["---" if others == 1 else "---:"] * others]
    lines = [f"## {table.title}", "", _row(table.header), _row(rule), *map(_row, table.rows)]
    return "\n".join(lines + (["", table.note] if table.note else []))


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _highlights(report: dict[str, Any]) -> str:
    """List the few figures that sum up the run."""
    stages, total = report["stages"], report["total"]
    base, rl = stages.get("base", {}), stages.get("rl", {})
    found = []
    if (bpb := base.get("val_bpb")) is not None:
        unigram = base["unigram_bpb"]
        below = "" if unigram is None else f", {1 - bpb / unigram:.0%} below unigram"
        found.append((f"{bpb:.3f}", f"bits per byte, base{below}"))
    if base.get("core") is not None:
        found.append((f"{base['core']:.4f}", "CORE, base"))
    chat = next((name for name in CHAT_STAGES if stages.get(name, {}).get("chatcore") is not None), None)
    if chat:
        found.append((f"{stages[chat]['chatcore']:.4f}", f"ChatCORE, {chat.upper()}"))
    if rl.get("reward_first") is not None and rl.get("reward_last") is not None:
        found.append((f"{rl['reward_first']:.2f} → {rl['reward_last']:.2f}", "mean reward in RL"))
    money = "" if total["cost"] is None else f", {dollars(total['cost'])}"
    found.append((duration(total["wall_s"] + total["eval_wall_s"]), f"training and evaluation{money}"))
    return "\n".join(f"- **{figure}** {label}" for figure, label in found)


def _samples(stage: str, samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    parts = [_exchange(s["prompt"], s["text"]) for s in samples["texts"]]
    answers = [_exchange(s["question"], s["text"], s["reward"], s["task"]) for s in samples["answers"]]
    rollouts = [_exchange(s["question"], s["answer"], s["reward"]) for s in samples["rollouts"]]
    parts += ["### Answers to problems", *answers] if answers else []
    parts += ["### Rollouts of the final model", *rollouts] if rollouts else []
    return [f"## What {stage.upper()} says", *parts] if parts else []


def _exchange(question: str, answer: str, reward: float | None = None, task: str = "rollout") -> str:
    """Quote a question (or the beginning of a text) and the model's answer, with task and reward where there are."""
    kind = "answer" if reward is None else "right" if reward > 0.5 else "wrong"
    verdict = "" if reward is None else f"{TITLES.get(task, task)}, reward {reward:g}"
    text = "\n".join([_fenced(question, "question"), _fenced(answer or "(nothing)", kind), verdict])
    return "\n".join(f"> {line}" for line in text.splitlines())


def _fenced(text: str, kind: str) -> str:
    """Put a model's text in a fence, so that nothing in it is markup; `page.html` has a style for each kind."""
    fence = "~" * (3 + text.count("~"))  # longer than any run of them in the text
    return f"{fence}{kind}\n{text}\n{fence}"

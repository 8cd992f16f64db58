"""The report card of a run: its sections, from what `figures.collect` found."""

from typing import Any

from raychat.report import curves, reproduce, tables
from raychat.report.blocks import (
    Answer,
    Commands,
    Highlights,
    Note,
    Section,
    SideBySide,
    Talk,
    of_table,
)
from raychat.report.tables import TITLES, dollars, duration
from raychat.runs import CHAT_STAGES, STAGES

FOLDED = (
    "CORE by task",
    "Time of evaluations",
    "Items in the training text",
    "Tokenizer: bytes per token",
    "Made with",
)


def heading(report: dict[str, Any]) -> tuple[str, str]:
    """Return the report's title and a sentence about the run."""
    stages = report["stages"]
    finished = [name for name, stage in stages.items() if stage["finished"]]
    size = next((f"{stage['num_params']:,} parameters" for stage in stages.values() if stage.get("num_params")), "")
    device = next((stage["device"] for stage in stages.values() if stage.get("device")), "")
    trained = ", ".join(name.upper() if name != "base" else name for name in finished)
    running = [name.upper() for name, stage in stages.items() if not stage["finished"]]
    workers = max(stage.get("workers") or 1 for stage in stages.values())
    parts = [size, f"through {trained}" if trained else "", f"unfinished: {', '.join(running)}" if running else ""]
    parts.append(f"{workers} worker{'s' if workers > 1 else ''} on {device}" if device else "")
    return f"{report['run']}: report card", ", ".join(part for part in parts if part) + f". Made {report['created']}."


def sections(report: dict[str, Any], rows: dict[str, curves.Rows]) -> list[Section]:
    """Return the report card, a conversation first."""
    samples, pictures = report["samples"], curves.time_line(rows, report["stages"])
    results, *others = tables.tables_of(report)
    parts = [
        Section("A conversation", _conversation(samples)),
        Section("In short", [Highlights(highlights(report))]),
        Section("Curves", pictures),
        of_table(results),
        Section("The same questions to each stage", _side_by_side(samples, "texts")),
        Section("The same problems to each stage", _side_by_side(samples, "answers"), folded=True),
        Section("Texts that base continues", _continuations(samples), folded=True),
        Section("Rollouts of the final model", _rollouts(samples), folded=True),
        *(of_table(table, table.title in FOLDED) for table in others),
        Section("How to reproduce", _commands(report)),
    ]
    return [part for part in parts if part.blocks]


def highlights(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the few figures that sum up the run, each with what it is."""
    stages, total = report["stages"], report["total"]
    base, rl = stages.get("base", {}), stages.get("rl", {})
    found = []
    if (bpb := base.get("val_bpb")) is not None:
        unigram = base["unigram_bpb"]
        below = "" if unigram is None else f", {1 - bpb / unigram:.0%} below unigram"
        found.append((f"{bpb:.3f}", f"bits per byte, base{below}"))
    if base.get("core") is not None:
        found.append((f"{base['core']:.3f}", "CORE, base"))
    if chat := next((name for name in CHAT_STAGES if stages.get(name, {}).get("chatcore") is not None), None):
        found.append((f"{stages[chat]['chatcore']:.3f}", f"ChatCORE, {chat.upper()}"))
    if rl.get("reward_first") is not None and rl.get("reward_last") is not None:
        found.append((f"{rl['reward_first']:.2f} → {rl['reward_last']:.2f}", "mean reward in RL"))
    found.append((duration(total["wall_s"] + total["eval_wall_s"]), "training and evaluation"))
    return found + ([] if total["cost"] is None else [(dollars(total["cost"]), "at the price below")])


def _conversation(samples: dict[str, Any]) -> list[Talk]:
    """Return what the last chat stage answered to the questions that every run asks."""
    for stage in CHAT_STAGES:
        if texts := samples.get(stage, {}).get("texts"):
            return [Talk([(text["prompt"], text["text"]) for text in texts])]
    return []


def _side_by_side(samples: dict[str, Any], kind: str) -> list[SideBySide]:
    """Return the questions that at least two stages answered, or all answers to problems of a single stage.

    kind: `texts`, or `answers` to problems.
    """
    asked: dict[tuple[str, str], list[Answer]] = {}
    for stage in STAGES:
        for sample in samples.get(stage, {}).get(kind, []):
            question = sample.get("question", sample.get("prompt"))
            answer = Answer(stage.upper(), sample["text"], sample.get("reward"))
            asked.setdefault((question, TITLES.get(sample.get("task"), sample.get("task", ""))), []).append(answer)
    least = min(2, sum(bool(found.get(kind)) for found in samples.values())) if kind == "answers" else 2
    rows = [(question, task, answers) for (question, task), answers in asked.items() if len(answers) >= least]
    return [SideBySide(rows)] if rows else []


def _continuations(samples: dict[str, Any]) -> list[SideBySide]:
    replies = {text["prompt"] for stage in CHAT_STAGES for text in samples.get(stage, {}).get("texts", [])}
    texts = [t for t in samples.get("base", {}).get("texts", []) if t.get("question", t["prompt"]) not in replies]
    return [SideBySide([(text["prompt"], "", [Answer("BASE", text["text"])]) for text in texts])] if texts else []


def _rollouts(samples: dict[str, Any]) -> list[SideBySide]:
    found = samples.get("rl", {}).get("rollouts", [])
    rows = [(sample["question"], "", [Answer("RL", sample["answer"], sample["reward"])]) for sample in found]
    return [SideBySide(rows)] if rows else []


def _commands(report: dict[str, Any]) -> list[Commands | Note]:
    commands = reproduce.commands(report)
    note = "The same commit, machine and number of workers give the same weights on CPUs; GPUs add in another order."
    return [Commands("\n".join(commands)), Note(note)] if commands else []

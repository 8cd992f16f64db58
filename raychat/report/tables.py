"""The report's tables, their cells as text."""

from collections.abc import Callable, Sequence
from typing import Any

from raychat.report.blocks import Table as Table
from raychat.runs import STAGES

ABSENT = "-"
TITLES = {
    "arc-easy": "ARC-Easy",
    "arc-challenge": "ARC-Challenge",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "spelling-bee": "SpellingBee",
    "simple-spelling": "SimpleSpelling",
}


def tables_of(report: dict[str, Any]) -> list[Table]:
    """Return the report's tables without the empty ones."""
    made = [
        _results(report),
        _time(report),
        _core(report),
        _seconds(report),
        _contamination(report),
        _tokenizer(report),
        _made_with(report),
    ]
    return [table for table in made if table.rows]


def number(value: Any, spec: str = ".4f") -> str:
    """Format a figure, None as "-"."""
    return ABSENT if value is None else format(value, spec)


def duration(seconds: float | None) -> str:
    """Format a time span in its natural unit, None as "-".

    >>> duration(12.34), duration(754), duration(5940), duration(None)
    ('12.3 s', '12 min 34 s', '1 h 39 min', '-')
    """
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def dollars(value: float | None) -> str:
    """Format an amount of US dollars, None as "-"."""
    return ABSENT if value is None else f"${value:.2f}"


def with_interval(value: Any, ends: Sequence[float] | None, spec: str = ".4f", ends_spec: str = ".2f") -> str:
    """Format a figure with the ends of its interval, where it has one.

    >>> with_interval(0.64, (0.545, 0.731)), with_interval(0.64, None)
    ('0.6400 [0.55, 0.73]', '0.6400')
    """
    text = number(value, spec)
    return text if value is None or ends is None else f"{text} [{', '.join(format(end, ends_spec) for end in ends)}]"


def _results(report: dict[str, Any]) -> Table:
    stages = [report["stages"].get(name, {"tasks": {}}) for name in STAGES]
    chances = {name: task["chance"] for stage in stages for name, task in stage["tasks"].items()}

    def row(title: str, key: str, task: str | None = None) -> list[str]:
        found = [stage["tasks"].get(task, {}) if task else stage for stage in stages]
        ends = [stage.get("interval", {}).get(task or key) for stage in stages]
        return [title, *(with_interval(figures.get(key), e) for figures, e in zip(found, ends, strict=True))]

    rows = [
        row("val bpb", "val_bpb"),
        row("unigram bpb", "unigram_bpb"),
        row("CORE", "core"),
        *(row(TITLES.get(task, task), "accuracy", task) for task in chances),
        *_pass_at_k(stages),
        row("ChatCORE", "chatcore"),
        row("mean reward, first steps", "reward_first"),
        row("mean reward, last steps", "reward_last"),
        row("reward of held-out problems", "val_reward"),
    ]
    header = ["", *(name.upper() for name in STAGES)]
    return Table("Results", header, [r for r in rows if set(r[1:]) != {ABSENT}], _note(stages, chances))


def _pass_at_k(stages: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each task and k: the share of problems that one of k samples solves."""
    rates = [stage.get("pass_at_k", {}) for stage in stages]
    names = dict.fromkeys((task, k) for tasks in rates for task, ks in tasks.items() for k in ks if k != "1")

    def cell(stage: dict[str, Any], task: str, k: str) -> str:
        rate = stage.get("pass_at_k", {}).get(task, {}).get(k)
        return with_interval(rate, stage.get("interval", {}).get(f"{task} pass@{k}"))

    return [[f"{TITLES.get(task, task)}, pass@{k}", *(cell(stage, task, k) for stage in stages)] for task, k in names]


def _note(stages: list[dict[str, Any]], chances: dict[str, float]) -> str:
    note = (
        "Bits per byte (bpb; lower is better) are of held-out text: base on pretraining text, mid on conversations, "
        "SFT and RL on the assistant's part of them; unigram bpb is what token frequencies alone reach on that text. "
        "CORE and ChatCORE are mean centred accuracies: 0 = guessing, 1 = perfect."
    )
    if any(stage.get("interval") for stage in stages):
        note += " In brackets: where 95% of the results lie when the problems are drawn anew (bootstrap)."
    if guessed := [f"{TITLES.get(task, task)} {chance:.2f}" for task, chance in chances.items() if chance]:
        note += f" Guessing scores {', '.join(guessed)}."
    guards = dict.fromkeys(guard for stage in stages for names in stage.get("guards", {}).values() for guard in names)
    return note + (f" Programs of models ran under {', '.join(guards)}." if guards else "")


def _time(report: dict[str, Any]) -> Table:
    total = report["total"]

    def row(title: str, figures: dict[str, Any]) -> list[str]:
        return [
            title,
            number(figures.get("steps"), ",d"),
            number(figures.get("tokens"), ",d"),
            number(figures.get("tok_per_s"), ",.0f"),
            duration(figures.get("wall_s")),
            duration(figures.get("eval_wall_s")),
            number(figures.get("workers"), "d"),
            figures.get("device") or ABSENT,
            dollars(figures.get("cost")),
        ]

    rows = [row("tokenizer", report["tokenizer"])] if (report["tokenizer"] or {}).get("wall_s") is not None else []
    for name, stage in report["stages"].items():
        rows.append(row(name.upper() + ("" if stage["finished"] else " (unfinished)"), stage))
    rows.append(row("total", total))
    notes = {
        "given": f"At ${total['price_per_hour'] or 0:g} an hour.",
        "list": "At a usual on-demand price of these GPUs (raychat/report/figures.py); set --price-per-hour for yours.",
        None: "No price is known for this machine: set --price-per-hour.",
    }
    header = ["stage", "steps", "tokens", "tok/s", "training", "evaluation", "workers", "device", "cost"]
    return Table("Time and cost", header, rows, notes[total["price"]])


def _core(report: dict[str, Any]) -> Table:
    rows = [
        [
            label,
            name.upper(),
            with_interval(task["accuracy"], stage.get("interval", {}).get(label)),
            number(task["centred"], "+.4f"),
            number(task["num_items"], "d"),
            duration(stage.get("seconds", {}).get(label)),
        ]
        for name, stage in report["stages"].items()
        for label, task in stage["core_tasks"].items()
    ]
    return Table("CORE by task", ["task", "stage", "accuracy", "centred", "items", "time"], rows)


def _seconds(report: dict[str, Any]) -> Table:
    """Return how long the parts of each evaluation took, but for CORE's tasks, which have a table of their own."""
    rows = [
        [", ".join(TITLES.get(task, task) for task in part.split(", ")), name.upper(), duration(seconds)]
        for name, stage in report["stages"].items()
        for part, seconds in stage.get("seconds", {}).items()
        if part not in stage["core_tasks"]
    ]
    note = "Of all processes together. Tasks that share calls are one part."
    return Table("Time of evaluations", ["part", "stage", "time"], rows, note)


def _contamination(report: dict[str, Any]) -> Table:
    rows = [
        [
            TITLES.get(task, task),
            name.upper(),
            f"{found['hits']} of {found['checked']}",
            with_interval(found["clean_accuracy"], found.get("interval", {}).get("clean_accuracy")),
        ]
        for name, stage in report["stages"].items()
        for task, found in stage.get("contamination", {}).items()
    ]
    note = "Items that share a run of words with the training text, and the accuracy on the others."
    return Table("Items in the training text", ["task", "stage", "found", "accuracy on the others"], rows, note)


def _tokenizer(report: dict[str, Any]) -> Table:
    kinds = (report["tokenizer"] or {}).get("bytes_per_token") or {}
    names = list(dict.fromkeys(name for rates in kinds.values() for name in rates))
    rows = [[kind, *(number(rates.get(name), ".2f") for name in names)] for kind, rates in kinds.items()]
    return Table("Tokenizer: bytes per token", ["text", *names], rows, "More bytes per token: fewer tokens to read.")


def _made_with(report: dict[str, Any]) -> Table:
    model, tokenizer = report["model"] or {}, report["tokenizer"] or {}
    sizes = ("n_layer", "n_embd", "n_head", "n_kv_head", "sequence_len", "vocab_size", "window_pattern")
    params = [f"{stage['num_params']:,}" for stage in report["stages"].values() if stage.get("num_params")]
    tokens = f"{tokenizer['vocab_size']:,} tokens" if tokenizer.get("vocab_size") else ""
    if tokens and tokenizer.get("characters"):
        tokens += f", from {tokenizer['characters']:,} characters of {tokenizer['documents']:,} documents"
    rows = {
        "code": _by_stage(report, _code),
        "machine": _by_stage(report, _machine) or _machine(report),
        "versions": _by_stage(report, _versions) or _versions(report),
        "model": ", ".join(f"{key} {model[key]}" for key in sizes if key in model),
        "parameters": params[0] if params else "",
        "tokenizer": tokens,
    }
    return Table("Made with", ["", ""], [[name, text] for name, text in rows.items() if text])


def _by_stage(report: dict[str, Any], text_of: Callable[[dict[str, Any]], str]) -> str:
    """Describe what the stages ran with, once if it is the same for all; empty where no stage recorded it."""
    found: dict[str, list[str]] = {}
    for name, stage in report["stages"].items():
        if recorded := stage.get("provenance"):
            found.setdefault(text_of(recorded), []).append(name.upper())
    return "; ".join(text if len(found) == 1 else f"{', '.join(names)}: {text}" for text, names in found.items())


def _code(recorded: dict[str, Any]) -> str:
    commit = f"commit {recorded['commit']}" if recorded["commit"] else "no commit known"
    if not recorded["dirty"]:
        return commit
    where = f"{recorded['diff']} in the stage's folder" if "diff" in recorded else "too large to be saved"
    return f"{commit} with changes (sha256 {recorded['diff_sha256'][:8]}, {where})"


def _machine(recorded: dict[str, Any]) -> str:
    machine = recorded["machine"]
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    gpus = f", {len(machine['gpus'])} x {machine['gpus'][0]}" if machine["gpus"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores{memory}{gpus}, {machine['system']}"


def _versions(recorded: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in recorded["versions"].items() if version)

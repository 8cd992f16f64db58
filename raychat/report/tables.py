"""The report's tables and samples as text: Markdown and HTML show the same cells."""

from typing import Any, NamedTuple

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


class Table(NamedTuple):
    """A table of formatted cells; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


class Exchange(NamedTuple):
    """A question (or the beginning of a text) and the model's answer, with reward and task where there is one."""

    question: str
    answer: str
    reward: float | None = None
    task: str = ""


def exchanges_of(samples: dict[str, list[dict[str, Any]]]) -> dict[str, list[Exchange]]:
    """Return a stage's samples by heading; the first ones need none."""
    return {
        "": [Exchange(s["prompt"], s["text"]) for s in samples["texts"]],
        "Answers to problems": [Exchange(s["question"], s["text"], s["reward"], s["task"]) for s in samples["answers"]],
        "Rollouts of the final model": [Exchange(s["question"], s["answer"], s["reward"]) for s in samples["rollouts"]],
    }


def tables_of(report: dict[str, Any]) -> list[Table]:
    """Return the report's tables without the empty ones."""
    made = [_results(report), _time(report), _core(report), _tokenizer(report), _made_with(report)]
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


def _results(report: dict[str, Any]) -> Table:
    stages = report["stages"]

    def row(title: str, key: str) -> list[str]:
        return [title, *(number(stages[name].get(key)) if name in stages else ABSENT for name in STAGES)]

    def task_row(task: str) -> list[str]:
        found = [stages[name]["tasks"].get(task) if name in stages else None for name in STAGES]
        return [TITLES.get(task, task), *(number(one["accuracy"]) if one else ABSENT for one in found)]

    tasks = dict.fromkeys(task for stage in stages.values() for task in stage["tasks"])
    rows = [
        row("val bpb", "val_bpb"),
        row("unigram bpb", "unigram_bpb"),
        row("CORE", "core"),
        *map(task_row, tasks),
        row("ChatCORE", "chatcore"),
        row("mean reward, first steps", "reward_first"),
        row("mean reward, last steps", "reward_last"),
    ]
    note = (
        "Bits per byte (bpb; lower is better) are of held-out text: base on pretraining text, mid on conversations, "
        "SFT and RL on the assistant's part of them; unigram bpb is what token frequencies alone reach on that text. "
        "CORE and ChatCORE are mean centred accuracies: 0 = guessing, 1 = perfect."
    )
    guesses = {name: task["chance"] for stage in stages.values() for name, task in stage["tasks"].items()}
    guessed = [f"{TITLES.get(name, name)} {chance:.2f}" for name, chance in guesses.items() if chance]
    if guessed:
        note += f" Guessing scores {', '.join(guessed)}."
    return Table("Results", ["", *(name.upper() for name in STAGES)], [r for r in rows if set(r[1:]) != {ABSENT}], note)


def _time(report: dict[str, Any]) -> Table:
    tokenizer, total = report["tokenizer"] or {}, report["total"]
    rows = []
    if tokenizer.get("wall_s") is not None:
        rows.append(["tokenizer", *[ABSENT] * 3, duration(tokenizer["wall_s"]), *[ABSENT] * 4])
    for name, stage in report["stages"].items():
        unfinished = "" if stage["finished"] else " (unfinished)"
        rows.append(
            [
                name.upper() + unfinished,
                number(stage.get("steps"), ",d"),
                number(stage.get("tokens"), ",d"),
                number(stage["tok_per_s"], ",.0f"),
                duration(stage["wall_s"]),
                duration(stage["eval_wall_s"]),
                number(stage.get("workers"), "d"),
                stage.get("device") or ABSENT,
                dollars(stage["cost"]),
            ]
        )
    times = [duration(total["wall_s"]), duration(total["eval_wall_s"])]
    rows.append(["total", *[ABSENT] * 3, *times, ABSENT, ABSENT, dollars(total["cost"])])
    header = ["stage", "steps", "tokens", "tok/s", "training", "evaluation", "workers", "device", "cost"]
    notes = {
        "given": f"At ${total['price_per_hour'] or 0:g} an hour.",
        "list": "At a usual on-demand price of these GPUs (raychat/report/figures.py); set --price-per-hour for yours.",
        None: "No price is known for this machine: set --price-per-hour.",
    }
    return Table("Time and cost", header, rows, notes[total["price"]])


def _core(report: dict[str, Any]) -> Table:
    scored = {name: stage["core_tasks"] for name, stage in report["stages"].items() if stage["core_tasks"]}
    rows = [
        [label, name.upper(), number(task["accuracy"]), number(task["centred"], "+.4f"), number(task["num_items"], "d")]
        for name, tasks in scored.items()
        for label, task in tasks.items()
    ]
    return Table("CORE by task", ["task", "stage", "accuracy", "centred", "items"], rows)


def _tokenizer(report: dict[str, Any]) -> Table:
    kinds = (report["tokenizer"] or {}).get("bytes_per_token") or {}
    names = list(dict.fromkeys(name for rates in kinds.values() for name in rates))
    rows = [[kind, *(number(rates.get(name), ".2f") for name in names)] for kind, rates in kinds.items()]
    return Table("Tokenizer: bytes per token", ["text", *names], rows, "More bytes per token: fewer tokens to read.")


def _made_with(report: dict[str, Any]) -> Table:
    machine, model, tokenizer = report["machine"], report["model"] or {}, report["tokenizer"] or {}
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    rows = [["machine", f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}"]]
    if machine["gpus"]:
        rows.append(["GPUs", ", ".join(machine["gpus"])])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)])
    if model:
        sizes = ("n_layer", "n_embd", "n_head", "n_kv_head", "sequence_len", "vocab_size", "window_pattern")
        rows.append(["model", ", ".join(f"{key} {model[key]}" for key in sizes if key in model)])
    params = [stage["num_params"] for stage in report["stages"].values() if stage.get("num_params")]
    if params:
        rows.append(["parameters", f"{params[0]:,}"])
    if tokenizer.get("vocab_size"):
        text = f"{tokenizer['vocab_size']:,} tokens"
        if tokenizer.get("characters"):
            text += f", from {tokenizer['characters']:,} characters of {tokenizer['documents']:,} documents"
        rows.append(["tokenizer", text])
    return Table("Made with", ["", ""], rows)

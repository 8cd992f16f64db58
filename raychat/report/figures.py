"""Collect the files of a run's stages into one dictionary: report.json."""

import statistics
import time
from typing import Any

from raychat import paths
from raychat.log import read_metrics
from raychat.provenance import machine, versions
from raychat.runs import STAGES

# Every stage of a report has these figures; None = not measured.
ALWAYS = ("val_bpb", "unigram_bpb", "wall_s", "eval_wall_s", "reward_first", "reward_last", "core", "chatcore")
# What newer evaluations, and stages, also say; left out where it is not there.
FROM_EVALUATION = ("pass_at_k", "guards", "contamination", "seconds")
FROM_BOTH = ("interval", "outcomes")  # by figure
FROM_SUMMARY = ("steps", "tokens", "num_params", "workers", "device", "val_reward", "provenance")
# Rough on-demand prices of specialised clouds in 2026, US dollars per GPU hour, by a part of the GPU's name.
LIST_PRICES = {"H200": 4.0, "H100": 3.0, "A100": 1.8, "RTX 4090": 0.4}

Rows = list[dict[str, Any]]


def collect(run_folder: str, price_per_hour: float | None = None) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Return a run's report, and the rows of its metrics by stage.

    Args:
        price_per_hour: US dollars, of all machines together; None = a list price where the GPU has one, else no cost.

    Raises:
        ValueError: the run has no stage.
    """
    folders = {name: paths.join(run_folder, name) for name in STAGES}
    rows = {name: read_metrics(folder) for name, folder in folders.items()}
    read = {name: (json_of(folder, "summary.json"), json_of(folder, "eval.json")) for name, folder in folders.items()}
    present = [name for name in STAGES if rows[name] or any(read[name])]
    if not present:
        raise ValueError(f"nothing to report: {run_folder} has none of the stages {', '.join(STAGES)}")
    stages = {name: stage_figures(*read[name], rows[name], price_per_hour) for name in present}
    tokenizer = tokenizer_figures(paths.join(run_folder, "tokenizer"))
    report = {
        "run": paths.name(run_folder),
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
        "versions": versions(),
        "tokenizer": tokenizer,
        "model": _architecture([folders[name] for name in present]),
        "stages": stages,
        "total": totals([*stages.values(), tokenizer or {}], price_per_hour),
        "samples": {name: _samples(*read[name]) for name in present},
    }
    return report, {name: rows[name] for name in present}


def stage_figures(
    summary: dict[str, Any], evaluation: dict[str, Any], rows: Rows, price_per_hour: float | None
) -> dict[str, Any]:
    """Return the figures of one stage; a task's accuracy is also under the task's name (`arc_easy`)."""
    found: dict[str, Any] = dict.fromkeys(ALWAYS)
    found |= {key: evaluation[key] for key in ("val_bpb", "core", "chatcore") if key in evaluation}
    found |= {key: summary[key] for key in (*ALWAYS, *FROM_SUMMARY) if key in summary}
    found |= {key: evaluation[key] for key in FROM_EVALUATION if key in evaluation}
    found |= {key: both for key in FROM_BOTH if (both := evaluation.get(key, {}) | summary.get(key, {}))}
    # Older code recorded `settings`.
    if settings := summary.get("recipe", {}) | summary.get("runtime", {}) or summary.get("settings"):
        found["settings"] = settings
    if not summary and rows:  # running or interrupted: take what its metrics hold so far
        found |= {"wall_s": rows[-1].get("t"), "steps": rows[-1]["step"]}
        found["val_bpb"] = next((row["val_bpb"] for row in reversed(rows) if "val_bpb" in row), found["val_bpb"])
    rates = [row["tok_per_s"] for row in rows if row.get("tok_per_s")]
    losses = [row["loss"] for row in rows if "loss" in row]
    found |= {
        "eval_wall_s": evaluation.get("wall_s"),
        "finished": bool(summary),
        "tok_per_s": statistics.median(rates) if rates else None,
        "loss_first": losses[0] if losses else None,
        "loss_last": statistics.fmean(losses[-max(1, len(losses) // 20) :]) if losses else None,
        "core_tasks": evaluation.get("core_tasks", {}),
        "eval_settings": evaluation.get("settings"),
    }
    found["cost"] = cost(found, price_per_hour)
    found["tasks"] = {
        name: {"accuracy": accuracy, **{key: evaluation.get(key, {}).get(name) for key in ("chance", "num_problems")}}
        for name, accuracy in evaluation.get("accuracy", {}).items()
    }
    for name, task in (found["core_tasks"] | found["tasks"]).items():
        found[name.lower().replace("-", "_")] = task["accuracy"]
    return found


def cost(stage: dict[str, Any], price_per_hour: float | None) -> float | None:
    """Return the US dollars of a stage's training and evaluation, None without a price.

    >>> cost({"wall_s": 3600, "eval_wall_s": None, "workers": 8, "device": "NVIDIA H100 80GB HBM3"}, None)
    24.0
    """
    if price_per_hour is None:
        one = next((price for part, price in LIST_PRICES.items() if part in (stage.get("device") or "")), None)
        if one is None:
            return None
        price_per_hour = one * max(1, stage.get("workers") or 1)
    return ((stage["wall_s"] or 0) + (stage["eval_wall_s"] or 0)) / 3600 * price_per_hour


def tokenizer_figures(folder: str) -> dict[str, Any] | None:
    """Return the figures of the tokenizer's training and evaluation, None without either."""
    trained, evaluated = json_of(folder, "train.json"), json_of(folder, "eval.json")
    if not trained and not evaluated:
        return None
    found = {key: trained.get(key) for key in ("characters", "documents", "wall_s", "fingerprint", "settings")}
    found["vocab_size"] = trained.get("vocab_size", evaluated.get("vocab_size"))
    found["bytes_per_token"] = {kind: text["bytes_per_token"] for kind, text in evaluated.get("texts", {}).items()}
    return found


def _architecture(folders: list[str]) -> dict[str, Any] | None:
    """Return the model's fields from the newest complete checkpoint of the first stage that has one."""
    for folder in folders:
        for entry in reversed(paths.names(folder)):
            if entry.startswith("step_") and (meta := json_of(paths.join(folder, entry), paths.LAST_FILE)):
                return dict(meta.get("recipe", meta).get("model", {}))  # older code recorded no recipe
    return None


def totals(parts: list[dict[str, Any]], price_per_hour: float | None) -> dict[str, Any]:
    """Sum time and cost over the stages and the tokenizer; the tokenizer's CPU time has no price."""
    costs = [part["cost"] for part in parts if "cost" in part]
    return {
        "wall_s": sum(part.get("wall_s") or 0 for part in parts),
        "eval_wall_s": sum(part.get("eval_wall_s") or 0 for part in parts),
        "cost": None if None in costs else sum(costs),
        "price": "given" if price_per_hour is not None else "list" if None not in costs else None,
        "price_per_hour": price_per_hour,
    }


def _samples(summary: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return what the model wrote: texts (continuations or replies), answers to problems, and RL's rollouts."""
    return {
        "texts": evaluation.get("samples", []),
        "answers": evaluation.get("answers", []),
        "rollouts": summary.get("samples", []),
    }


def json_of(folder: str, name: str) -> dict[str, Any]:
    """Return the content of a JSON file, empty where there is none."""
    path = paths.join(folder, name)
    return dict(paths.read_json(path)) if paths.exists(path) else {}

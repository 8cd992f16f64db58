"""Read what the stages of a run left behind into one dictionary: report.json."""

import statistics
import time
from typing import Any

from raychat import paths
from raychat.log import read_metrics
from raychat.report.machine import machine, versions

STAGES = ("base", "mid", "sft", "rl")
# Held by every stage that was run, None where it was not measured.
ALWAYS = ("val_bpb", "unigram_bpb", "wall_s", "eval_wall_s", "reward_first", "reward_last", "core", "chatcore")
FROM_SUMMARY = ("steps", "tokens", "num_params", "workers", "device", "val_reward", "settings")
# US dollars an hour of one GPU, on demand, by a part of its name: what specialised clouds asked for in 2026, roughly.
LIST_PRICES = {"H200": 4.0, "H100": 3.0, "A100": 1.8}

Rows = list[dict[str, Any]]


def collect(run_folder: str, price_per_hour: float | None = None) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Return a run's report and, by stage, the rows of its metrics.

    Raises ValueError when no stage of the run is there.
    """
    folders = {name: paths.join(run_folder, name) for name in STAGES}
    rows = {name: read_metrics(folder) for name, folder in folders.items()}
    read = {name: (_json(folder, "summary.json"), _json(folder, "eval.json")) for name, folder in folders.items()}
    there = [name for name in STAGES if rows[name] or any(read[name])]
    if not there:
        raise ValueError(f"nothing to report: {run_folder} has none of the stages {', '.join(STAGES)}")
    stages = {name: stage_figures(*read[name], rows[name], price_per_hour) for name in there}
    tokenizer = tokenizer_figures(paths.join(run_folder, "tokenizer"))
    report = {
        "run": paths.name(run_folder),
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
        "versions": versions(),
        "tokenizer": tokenizer,
        "model": _architecture(folders, there),
        "stages": stages,
        "total": totals([*stages.values(), tokenizer or {}], price_per_hour),
        "samples": {name: _samples(*read[name]) for name in there},
    }
    return report, {name: rows[name] for name in there}


def stage_figures(
    summary: dict[str, Any], evaluation: dict[str, Any], rows: Rows, price_per_hour: float | None
) -> dict[str, Any]:
    """Return the figures of one stage, the accuracy of each task under the task's name (`arc_easy`)."""
    found: dict[str, Any] = dict.fromkeys(ALWAYS)
    found |= {key: evaluation[key] for key in ("val_bpb", "core", "chatcore") if key in evaluation}
    found |= {key: summary[key] for key in (*ALWAYS, *FROM_SUMMARY) if key in summary}
    found["eval_wall_s"] = evaluation.get("wall_s")
    found["finished"] = bool(summary)
    if not summary and rows:  # still running, or stopped: what its metrics say so far
        found["wall_s"] = rows[-1].get("t")
        found["steps"] = rows[-1]["step"]
    rates = [row["tok_per_s"] for row in rows if row.get("tok_per_s")]
    found["tok_per_s"] = statistics.median(rates) if rates else None
    losses = [row["loss"] for row in rows if "loss" in row]
    found["loss_first"], found["loss_last"] = _ends(losses)
    found["cost"] = cost(found, price_per_hour)
    found["core_tasks"] = evaluation.get("core_tasks", {})
    found["tasks"] = {
        name: {
            "accuracy": accuracy,
            "chance": evaluation.get("chance", {}).get(name),
            "num_problems": evaluation.get("num_problems", {}).get(name),
        }
        for name, accuracy in evaluation.get("accuracy", {}).items()
    }
    for name, task in (found["core_tasks"] | found["tasks"]).items():
        found[name.lower().replace("-", "_")] = task["accuracy"]
    return found


def cost(stage: dict[str, Any], price_per_hour: float | None) -> float | None:
    """Return US dollars for a stage's training and evaluation, None where there is no price.

    >>> cost({"wall_s": 3600, "eval_wall_s": None, "workers": 8, "device": "NVIDIA H100 80GB HBM3"}, None)
    24.0
    """
    if price_per_hour is None:
        device = stage.get("device") or ""
        one = next((price for part, price in LIST_PRICES.items() if part in device), None)
        if one is None:
            return None
        price_per_hour = one * max(1, stage.get("workers") or 1)
    return ((stage["wall_s"] or 0) + (stage["eval_wall_s"] or 0)) / 3600 * price_per_hour


def tokenizer_figures(folder: str) -> dict[str, Any] | None:
    """Return what training and evaluating the tokenizer found, None where there is neither."""
    trained, evaluated = _json(folder, "train.json"), _json(folder, "eval.json")
    if not trained and not evaluated:
        return None
    found = {key: trained.get(key) for key in ("characters", "documents", "wall_s", "fingerprint")}
    found["vocab_size"] = trained.get("vocab_size", evaluated.get("vocab_size"))
    found["bytes_per_token"] = {kind: text["bytes_per_token"] for kind, text in evaluated.get("texts", {}).items()}
    return found


def _ends(values: list[float]) -> tuple[float | None, float | None]:
    """Return the first value and the mean of the last twentieth."""
    if not values:
        return None, None
    return values[0], statistics.fmean(values[-max(1, len(values) // 20) :])


def _architecture(folders: dict[str, str], there: list[str]) -> dict[str, Any] | None:
    """Return the model's fields from the first stage's newest checkpoint that still has its description."""
    for name in there:
        for entry in reversed(paths.names(folders[name])):
            if entry.startswith("step_") and (meta := _json(paths.join(folders[name], entry), paths.LAST_FILE)):
                return dict(meta.get("model", {}))
    return None


def totals(parts: list[dict[str, Any]], price_per_hour: float | None) -> dict[str, Any]:
    """Sum up time and cost over stages and tokenizer (whose minutes on a CPU are not priced)."""
    costs = [part["cost"] for part in parts if "cost" in part]
    return {
        "wall_s": sum(part.get("wall_s") or 0 for part in parts),
        "eval_wall_s": sum(part.get("eval_wall_s") or 0 for part in parts),
        "cost": None if None in costs else sum(costs),
        "price": "given" if price_per_hour is not None else "list" if None not in costs else None,
        "price_per_hour": price_per_hour,
    }


def _samples(summary: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the texts to be read: continuations or replies, and answers to problems with their rewards."""
    return {
        "texts": evaluation.get("samples", []),
        "answers": evaluation.get("answers", []),
        "rollouts": summary.get("samples", []),
    }


def _json(folder: str, name: str) -> dict[str, Any]:
    path = paths.join(folder, name)
    return dict(paths.read_json(path)) if paths.exists(path) else {}

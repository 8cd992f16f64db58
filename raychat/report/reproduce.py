"""The commands that make a run again, from what its stages recorded."""

import shlex
from typing import Any

from raychat.runs import STAGES

FINETUNED = ("tasks", "task_data", "steps", "batch_tokens", "lr", "seed")
FROM_RECIPE = {
    "base": ("data", "num_shards", "batch_tokens", "steps", "lr_scale", "seed"),
    "mid": FINETUNED,
    "sft": FINETUNED,
    "rl": ("tasks", "task_data", "steps", "lr", "seed"),
}
FROM_MODEL = ("sequence_len", "window_pattern")
SHOWN = ("questions", "prompts")  # settings of evaluations that change no figure


def commands(report: dict[str, Any]) -> list[str]:
    """Return what to type, in order: the code, then every step that the run recorded; empty where none did.

    The settings that change no weights (how often to save or evaluate, rows of a micro-batch) are left out.
    """
    run, steps = report["run"], list[str]()
    if settings := (report["tokenizer"] or {}).get("settings"):
        steps.append(_command("tok_train", run, settings))
    for name in STAGES:
        stage = report["stages"].get(name, {})
        if (recipe := stage.get("settings")) and recipe.get("model", {}).get("class") == "GPT":
            steps.append(_command(f"{name}_train", run, stage_settings(name, recipe)))
            if evaluation := stage.get("eval_settings"):
                job, own = ("base_eval", {}) if name == "base" else ("chat_eval", {"stage": name})
                kept = {key: value for key, value in evaluation.items() if key not in SHOWN}
                steps.append(_command(job, run, own | kept))
    return [*_code(report), *steps] if steps else []


def stage_settings(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage's job that give this recipe."""
    settings = {key: recipe.get(key) for key in FROM_RECIPE[name]}
    if name == "base":
        model = recipe["model"]
        width = model["n_embd"]
        shape = {"depth": model["n_layer"], "width": width, "head_dim": width // model["n_head"]}
        settings = shape | {key: model.get(key) for key in FROM_MODEL} | settings
    if name == "rl":
        settings |= recipe.get("sampling") or {}
    return settings | {"cluster.workers": recipe.get("workers")}


def _code(report: dict[str, Any]) -> list[str]:
    """Return how to get the code of the last stage: its commit, and its changes where it had some."""
    recorded = [(name, stage["provenance"]) for name, stage in report["stages"].items() if stage.get("provenance")]
    if not recorded or not recorded[-1][1].get("commit"):
        return []
    name, code = recorded[-1]
    changes = [f"git apply {report['run']}/{name}/{code['diff']}"] if "diff" in code else []
    return [f"git checkout {code['commit']}", *changes]


def _command(job: str, run: str, settings: dict[str, Any]) -> str:
    words = ["python", f"jobs/{job}.py", "--run", run]
    for name, value in settings.items():
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)

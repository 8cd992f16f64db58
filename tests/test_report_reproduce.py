"""The commands of a report make the run again: the jobs take them, and the recipe is the same."""

import importlib
import shlex
from dataclasses import asdict
from typing import Any

import tyro

from jobs import base_train
from raychat.report import reproduce

TOKENIZER = {"data": ["tinyworld"], "num_shards": None, "num_val": 1, "vocab_size": 512, "doc_cap": 10000}
PROVENANCE = {"commit": "1a4a211", "dirty": True, "diff": "code-0123.diff"}
ORIGINAL = base_train.Args(
    run="r",
    depth=2,
    width=96,
    head_dim=32,
    sequence_len=64,
    window_pattern="SL",
    batch_tokens=640,
    steps=30,
    lr_scale=0.7,
    seed=5,
    data=("tinyworld", "my folder"),
)
CHILD = {"tasks": ["arc-easy*4", "mmlu"], "task_data": "hub", "steps": 7, "batch_tokens": 640, "lr": 0.3, "seed": 1}
SAMPLING = {"questions_per_step": 3, "samples": 4, "max_new_tokens": 9, "temperature": 0.9, "top_k": 11}


def parsed() -> dict[str, list[Any]]:
    """Return the settings of all commands, by job, as their command lines give them."""
    recipe = asdict(base_train.stage_of(ORIGINAL, 512, None).recipe)
    child = {"model": recipe["model"], "workers": 2, **CHILD}
    evaluation = {"tasks": None, "task_data": "hub", "max_problems": 9, "questions": ["Hello?"], "temperature": 0.0}
    base = {"settings": {**recipe, "workers": 2}, "eval_settings": {"max_items": 60, "prompts": None, "tasks": None}}
    stages: dict[str, Any] = {"base": base}
    stages |= {name: {"settings": child, "eval_settings": evaluation} for name in ("mid", "sft")}
    stages["rl"] = {
        "settings": {**child, "tasks": ["gsm8k", "spelling-bee*2"], "sampling": SAMPLING},
        "provenance": PROVENANCE,
    }
    report = {"run": "r", "tokenizer": {"settings": TOKENIZER}, "stages": stages}
    code, patch, *steps = reproduce.commands(report)
    assert (code, patch) == ("git checkout 1a4a211", "git apply r/rl/code-0123.diff")
    found: dict[str, list[Any]] = {}
    for step in steps:
        python, path, *words = shlex.split(step)
        assert python == "python"
        job = path.removeprefix("jobs/").removesuffix(".py")
        args = importlib.import_module(f"jobs.{job}").Args
        found.setdefault(job, []).append(tyro.cli(args, args=words))
    return found


def test_every_step_is_there_in_order() -> None:
    assert list(parsed()) == ["tok_train", "base_train", "base_eval", "mid_train", "chat_eval", "sft_train", "rl_train"]


def test_base_has_the_same_recipe() -> None:
    (args,) = parsed()["base_train"]
    assert base_train.stage_of(args, 512, None).recipe == base_train.stage_of(ORIGINAL, 512, None).recipe
    assert args.cluster.workers in (2, "2")


def test_later_stages_have_their_settings() -> None:
    found = parsed()
    for job in ("mid_train", "sft_train"):
        (args,) = found[job]
        assert {key: getattr(args, key) for key in CHILD} == CHILD | {"tasks": tuple(CHILD["tasks"])}
    (rl,) = found["rl_train"]
    assert {key: getattr(rl, key) for key in SAMPLING} == SAMPLING
    assert (rl.tasks, rl.task_data, rl.steps, rl.lr, rl.seed) == (("gsm8k", "spelling-bee*2"), "hub", 7, 0.3, 1)
    assert [args.stage for args in found["chat_eval"]] == ["mid", "sft"]
    assert found["tok_train"][0].vocab_size == 512


def test_nothing_recorded_means_no_commands() -> None:
    assert reproduce.commands({"run": "r", "tokenizer": None, "stages": {"base": {"provenance": PROVENANCE}}}) == []

"""The two records of a checkpoint, and what checkpoints of format 1 are read as."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import toy

from jobs import base_train
from raychat import checkpoint, paths
from raychat.recipe import Recipe, Runtime, differences, from_format_1
from raychat.train.finetune import child_recipe
from raychat.train.finished import finished

MODEL = toy.recipe().model
BASE = {  # all settings of base_train, as format 1 recorded them
    "run": "r", "data": ["tinyworld"], "num_shards": None, "depth": 3, "head_dim": None, "sequence_len": 32,
    "window_pattern": "SSSL", "ratio": 12.0, "steps": 450, "batch_tokens": 2048, "device_rows": None, "lr_scale": 0.4,
    "eval_every": 200, "eval_tokens": 60000, "save_every": 100, "seed": 0, "weight_decay": 0.7, "tokenizer": "abc",
}  # fmt: skip
RL = {
    "run": "r", "task": "gsm8k", "task_data": "tinyworld", "steps": 16, "questions_per_step": 16, "samples": 8,
    "max_new_tokens": 96, "temperature": 1.0, "top_k": 50, "lr": 0.4, "device_rows": 2, "eval_every": 60,
    "num_eval": 64, "save_every": 60, "questions_per_call": 2, "seed": 0, "parent": "/s/runs/r/sft/step_000250",
    "lr_scale": 0.4,
}  # fmt: skip


def test_recipe_survives_json() -> None:
    recipe = toy.recipe(tasks=("a", "b*2"), sampling={"samples": 8}, data=("x",), parent="runs/r/mid/step_000001")
    assert Recipe.from_json(json.loads(json.dumps(asdict(recipe)))) == recipe
    with pytest.raises(ValueError, match="unknown fields moons"):
        Recipe.from_json({**asdict(recipe), "moons": 2})


def test_a_jobs_settings_of_the_runtime_are_taken_by_name() -> None:
    job = base_train.Args(device_rows=3, keep=1, compile=False, fp8=True, eval_every=7)
    assert Runtime.of(job) == Runtime(device_rows=3, eval_every=7, save_every=500, keep=1, compile=False, fp8=True)


def test_differences_are_named_and_what_is_unknown_is_none() -> None:
    one = toy.recipe(seed=0, sampling={"samples": 8, "top_k": 50}, parent="/storage/runs/r/sft/step_000001")
    assert differences(one, one) == []
    assert differences(one, replace(one, inputs="0123", tokenizer="abc", data=("x",))) == []
    assert differences(replace(one, inputs="0123"), replace(one, inputs="4567")) == ["inputs: there '0123', now '4567'"]
    by_content = replace(one, inputs="documents-89ab")
    assert differences(replace(one, inputs="0123"), by_content) == []  # of an older raychat: not to be compared
    assert len(differences(replace(one, inputs="documents-4567"), by_content)) == 1
    assert differences(one, replace(one, parent="runs/r/sft/step_000001")) == []
    assert differences(one, replace(one, parent="runs/r/sft/step_000002")) != []
    assert differences(one, replace(one, sampling={"samples": 9, "top_k": 50})) == ["samples: there 8, now 9"]
    assert differences(one, replace(one, steps=3)) == ["steps: there None, now 3"]


def test_format_1_is_read(tmp_path: Path) -> None:
    """A base checkpoint as the code before wrote it: a resumed stage, and a parent."""
    folder = str(tmp_path / "runs" / "r" / "base")
    path = checkpoint.save_checkpoint(folder, toy.model(), None, toy.byte_tokenizer(), toy.meta(450))
    old = {"format": 1, "step": 450, "model": MODEL, "commit": "1a79e07", "settings": BASE, "parent": None}
    old |= {"metrics": {"val_bpb": 0.278}, "wall_s": 120.5, "workers": 2}
    paths.write_json(path + "/meta.json", old)
    paths.write_json(folder + "/summary.json", {"settings": BASE, "steps": 450})
    meta = checkpoint.read_meta(path)
    assert (meta.step, meta.metrics, meta.wall_s, meta.commit) == (450, {"val_bpb": 0.278}, 120.5, "1a79e07")
    assert meta.runtime == Runtime(device_rows=None, eval_every=200, save_every=100, workers=2)
    now = Recipe(MODEL, 2048, 0.4, 0.7, steps=450, tokenizer="abc", data=("tinyworld",), inputs="0123")
    assert finished(folder, now) == {"settings": BASE, "steps": 450, "checkpoint": path}
    with pytest.raises(ValueError, match=r"batch_tokens: there 2048, now 4096"):
        finished(folder, replace(now, batch_tokens=4096))
    child = child_recipe(path, str(tmp_path), tasks=("gsm8k",), lr=0.8, seed=1)
    assert child == replace(
        now, weight_decay=0.0, steps=None, inputs=None, tasks=("gsm8k",), lr=0.8, seed=1,
        parent="runs/r/base/step_000450",
    )  # fmt: skip


def test_format_1_of_reinforcement_has_its_sampling() -> None:
    recipe, runtime = from_format_1(MODEL, RL, "/s/runs/r/sft/step_000250")
    assert recipe.tasks == ("gsm8k",)
    assert recipe.sampling == {
        "questions_per_step": 16, "samples": 8, "max_new_tokens": 96, "temperature": 1.0, "top_k": 50
    }  # fmt: skip
    assert (recipe.lr, recipe.steps, runtime.device_rows) == (0.4, 16, 2)

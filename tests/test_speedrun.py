"""The whole road in this process, a few steps of each stage: every job hands the next one what it needs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import speedrun
from raychat import tinyworld
from raychat.checkpoint import all_in, read_meta
from raychat.cluster import Cluster

STEPS = {"base": 3, "mid": 2, "sft": 2, "rl": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tinyworld.write(str(folder), scale=0.05)
    return folder


def arguments(world: Path, **settings: Any) -> speedrun.Args:
    return speedrun.Args(
        run="r",
        data=(str(world / "pretrain"),),
        task_data=str(world),
        bundle=str(world / "eval_bundle"),
        depth=1,
        vocab_size=400,
        sequence_len=256,
        **{f"{stage}_steps": steps for stage, steps in STEPS.items()},
        rl_max_new_tokens=4,
        eval_tasks=("arc-easy", "gsm8k"),
        max_problems=2,
        cluster=Cluster(workers=0),
        **settings,
    )


def test_speedrun_goes_all_the_way_and_does_nothing_twice(
    world: Path, raychat_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(world)
    planned = speedrun.run(replace(args, dry_run=True))
    assert not list(raychat_home.iterdir())
    report = speedrun.run(args)
    run = raychat_home / "runs" / "r"
    assert json.loads((run / "report" / "report.json").read_text()) == report
    for stage, steps in STEPS.items():
        figures = report["stages"][stage]
        assert figures["steps"] == steps
        assert 0 < figures["val_bpb"] < 20
        assert figures["unigram_bpb"] > 0
        assert figures["wall_s"] > 0
    assert all(report["stages"][stage].keys() >= {"arc_easy", "gsm8k"} for stage in ("mid", "sft", "rl"))
    assert 0 <= report["stages"]["rl"]["reward_first"] <= 1
    assert 0 <= report["stages"]["rl"]["reward_last"] <= 1
    last = [all_in(str(run / stage))[-1] for stage in STEPS]
    parents = [read_meta(path).recipe.parent for path in last]
    assert parents == [None, *(path.removeprefix(f"{raychat_home}/") for path in last[:-1])]

    known = speedrun.run(replace(args, dry_run=True))
    for stage, path in zip(("base", "mid", "sft"), last, strict=False):
        recipe = replace(read_meta(path).recipe, inputs=None)
        assert known[stage]["recipe"] == recipe
        assert planned[stage]["recipe"] == replace(recipe, parent=None, tokenizer=None)

    written = {path: path.stat().st_mtime_ns for stage in STEPS for path in (run / stage).rglob("*")}
    capsys.readouterr()
    assert speedrun.run(args)["stages"] == report["stages"]
    assert {path: path.stat().st_mtime_ns for stage in STEPS for path in (run / stage).rglob("*")} == written
    assert capsys.readouterr().out.count("already") >= len(STEPS) + 4  # stages and their evaluations


def test_a_home_that_was_moved_goes_on(
    world: Path, raychat_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = speedrun.pipeline(arguments(world))
    mid, sft = replace(steps.mid_train, save_every=1), steps.sft_train
    speedrun.tok_train.run(steps.tok_train)
    speedrun.base_train.run(steps.base_train)
    whole, before = speedrun.mid_train.run(mid), speedrun.sft_train.run(sft)
    for name in (f"step_{STEPS['mid']:06d}/meta.json", "summary.json"):  # as if mid had been killed at its last step
        (raychat_home / "runs" / "r" / "mid" / name).unlink()

    moved = raychat_home.rename(raychat_home.parent / "moved")
    monkeypatch.setenv("RAYCHAT_HOME", str(moved))
    capsys.readouterr()
    assert speedrun.mid_train.run(mid)["val_bpb"] == whole["val_bpb"]
    assert f"resumes at step {STEPS['mid'] - 1} of {STEPS['mid']}" in capsys.readouterr().out
    there = str(moved / "runs" / "r" / "sft" / f"step_{STEPS['sft']:06d}")
    assert speedrun.sft_train.run(sft) == before | {"checkpoint": there}
    assert 0 < speedrun.rl_train.run(steps.rl_train)["val_bpb"] < 20
    assert not raychat_home.exists()


def test_other_settings_of_a_finished_run_are_refused(world: Path, raychat_home: Path) -> None:
    speedrun.tok_train.run(speedrun.pipeline(arguments(world)).tok_train)
    with pytest.raises(ValueError, match="vocab_size"):
        speedrun.run(replace(arguments(world), vocab_size=500))


def test_a_seed_is_that_of_every_stage() -> None:
    steps = speedrun.pipeline(speedrun.Args(seed=7))
    assert [step.seed for step in (steps.base_train, steps.mid_train, steps.sft_train, steps.rl_train)] == [7] * 4
    usual, preset = speedrun.pipeline(speedrun.Args()), speedrun.tiny()
    assert (usual.base_train.seed, usual.sft_train.seed) == (preset.base_train.seed, preset.sft_train.seed)


def test_a_setting_that_a_step_does_not_have_is_refused() -> None:
    step = speedrun.base_train.Args()
    changed = speedrun.with_settings(step, {"run": "r", "task_data": "hub", "data": None}, {"depth": 3})
    assert changed == replace(step, run="r", depth=3)
    with pytest.raises(ValueError, match="base_train has no setting dept"):
        speedrun.with_settings(step, {}, {"dept": 3})

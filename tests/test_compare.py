"""Runs side by side: differences, their intervals, what differs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import write_run

from jobs import compare as job
from raychat import paths, report
from raychat.cluster import Cluster
from raychat.intervals import DRAWS
from raychat.report import compare


def with_outcomes(run: str, outcomes: dict[str, list[float]], **settings: Any) -> None:
    """Let the SFT stage of a run answer problems so."""
    path = paths.join(run, "sft", "eval.json")
    accuracy = {task: float(np.mean(rewards)) for task, rewards in outcomes.items()}
    chance = dict.fromkeys(outcomes, 0.25)
    counts = {task: len(rewards) for task, rewards in outcomes.items()}
    found = {"accuracy": accuracy, "chance": chance, "num_problems": counts, "outcomes": outcomes}
    found["chatcore"] = float(np.mean([(a - 0.25) / 0.75 for a in accuracy.values()]))
    paths.write_json(path, paths.read_json(path) | found | {"settings": settings})


def two(root: Path, first: dict[str, list[float]], other: dict[str, list[float]], **of_the_other: Any) -> list[Any]:
    """Two runs a and b that answered so, as the comparison reads them."""
    for name, outcomes, settings in (("a", first, {}), ("b", other, of_the_other)):
        write_run(folder := str(root / "runs" / name))
        with_outcomes(folder, outcomes, **settings)
    return [compare.Compared(*report.collect(str(root / "runs" / name))) for name in ("a", "b")]


def sft(runs: list[Any], figure: str) -> compare.Difference:
    found = compare.difference(runs[0].stage("sft"), runs[1].stage("sft"), figure)
    assert found is not None
    return found


def test_paired_interval_is_that_of_the_differences(tmp_path: Path) -> None:
    """Where the other run is right on the same problems and one in ten more, noise of the problems cancels out."""
    rng = np.random.default_rng(3)
    base = (rng.random(200) < 0.5).astype(float)
    better = np.maximum(base, np.arange(200) % 10 == 0)
    found = sft(two(tmp_path, {"gsm8k": base.tolist()}, {"gsm8k": better.tolist()}), "gsm8k")
    assert found.paired
    assert found.value == pytest.approx((better - base).mean())
    difference = better - base
    draws = [difference[rng.integers(200, size=200)].mean() for _ in range(DRAWS)]
    assert found.interval == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.01)
    assert found.interval[0] > 0


@pytest.mark.parametrize(("count", "settings"), [(150, {}), (200, {"task_data": "hub"})], ids=["number", "data"])
def test_other_problems_are_drawn_apart(tmp_path: Path, count: int, settings: dict[str, Any]) -> None:
    alike = [1.0, 0.0] * 100
    found = sft(two(tmp_path, {"gsm8k": alike}, {"gsm8k": alike[:count]}, **settings), "gsm8k")
    assert not found.paired
    assert found.value == 0
    sd = 0.5 * (1 / 200 + 1 / count) ** 0.5
    assert found.interval == pytest.approx((-1.96 * sd, 1.96 * sd), abs=0.02)


def test_chatcore_is_composed_of_centred_tasks(tmp_path: Path) -> None:
    first = {"gsm8k": [1.0, 0.0] * 50, "mmlu": [0.0, 1.0] * 50}
    found = sft(two(tmp_path, first, {"gsm8k": [1.0] * 100, "mmlu": [0.0, 1.0] * 50}), "chatcore")
    assert found.value == pytest.approx(0.5 / 0.75 / 2)
    low, high = found.interval or (0.0, 0.0)
    # one task's differences are 0 for every problem, the other's 0 or 1 like a coin, halved and centred
    sd = 0.5 / 10 / 0.75 / 2
    assert (low, high) == pytest.approx((found.value - 1.96 * sd, found.value + 1.96 * sd), abs=0.01)


def test_chatcore_of_other_tasks_is_not_compared(tmp_path: Path) -> None:
    runs = two(tmp_path, {"gsm8k": [1.0, 0.0], "mmlu": [0.0, 1.0]}, {"gsm8k": [1.0, 1.0]})
    assert compare.difference(runs[0].stage("sft"), runs[1].stage("sft"), "chatcore") is None
    assert sft(runs, "gsm8k").value == 0.5


def test_without_outcomes_there_is_no_interval(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(str(tmp_path / name))
    path = paths.join(str(tmp_path / "b"), "base", "summary.json")
    paths.write_json(path, paths.read_json(path) | {"val_bpb": 1.75})
    runs = [compare.Compared(*report.collect(str(tmp_path / name))) for name in ("a", "b")]
    found = compare.difference(runs[0].stage("base"), runs[1].stage("base"), "val_bpb")
    assert found == (-0.25, None, True)
    (row,) = [row for row in compare.stage_table("base", runs).rows if row[0] == "val bpb"]
    assert row == ["val bpb", "2.0000", "1.7500", "-0.2500"]


def with_summary(root: Path, stage: str, name: str, **figures: Any) -> None:
    path = paths.join(str(root / name), stage, "summary.json")
    paths.write_json(path, paths.read_json(path) | figures)


def measured(root: Path, stage: str, figure: str, first: dict[str, Any], other: dict[str, Any]) -> compare.Difference:
    """Return the difference of a figure of two runs whose stages have recorded this."""
    for name, found in (("a", first), ("b", other)):
        write_run(str(root / name))
        with_summary(root, stage, name, **found)
    runs = [compare.Compared(*report.collect(str(root / name))) for name in ("a", "b")]
    found = compare.difference(runs[0].stage(stage), runs[1].stage(stage), figure)
    assert found is not None
    return found


def bpb_of(nats: list[float], bytes_: list[int]) -> dict[str, Any]:
    return {
        "val_bpb": sum(nats) / sum(bytes_) / math.log(2),
        "outcomes": {"val_bpb": {"nats": nats, "bytes": bytes_}},
    }


def test_bits_per_byte_of_the_same_text_are_compared_block_by_block(tmp_path: Path) -> None:
    """Every block has one percent fewer nats: however the blocks differ, the difference is sure."""
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(500, 1500, 100).tolist()
    nats = (rng.uniform(0.5, 2, 100) * bytes_).tolist()
    less = bpb_of([0.99 * of_block for of_block in nats], bytes_)
    found = measured(tmp_path / "same", "base", "val_bpb", bpb_of(nats, bytes_), less)
    value = bpb_of(nats, bytes_)["val_bpb"]
    assert found.paired
    assert found.value == pytest.approx(-0.01 * value)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert found.interval[1] - found.interval[0] < 0.003 * value
    other = bpb_of([*nats[1:], nats[0]], [*bytes_[1:], bytes_[0]])
    apart = measured(tmp_path / "other", "base", "val_bpb", bpb_of(nats, bytes_), other)
    assert not apart.paired
    assert apart.interval is not None
    assert apart.interval[0] < -0.01 * value < 0.01 * value < apart.interval[1]


@pytest.mark.parametrize(("figure", "paired"), [("val_reward", True), ("reward_last", False)])
def test_rewards_have_the_interval_of_their_difference(tmp_path: Path, figure: str, paired: bool) -> None:
    first, other = [0.0, 0.5, 0.5, 1.0] * 10, [0.25, 0.75, 0.75, 1.0] * 10
    found = measured(
        tmp_path,
        "rl",
        figure,
        {figure: 0.5, "outcomes": {figure: first}},
        {figure: 0.6875, "outcomes": {figure: other}},
    )
    assert (found.value, found.paired) == (0.1875, paired)
    low, high = found.interval or (0.0, 0.0)
    assert low < 0.1875 < high
    assert (high - low < 0.1) == paired


def test_settings_that_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_run(folder := str(tmp_path / name))
        path = paths.join(folder, "base", "summary.json")
        recipe = {"model": {"n_layer": 2}, "seed": seed, "steps": 200}
        paths.write_json(path, paths.read_json(path) | {"recipe": recipe, "runtime": {}})
    runs = [compare.Compared(*report.collect(str(tmp_path / name))) for name in ("a", "b")]
    assert compare.settings_table(runs).rows == [["base: seed", "0", "1"]]


def test_job_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two(tmp_path, {"gsm8k": [1.0, 0.0] * 20}, {"gsm8k": [1.0] * 40})
    job.run(job.Args(("a", "b"), cluster=Cluster(storage_path=str(tmp_path))))
    printed = capsys.readouterr().out
    text = (tmp_path / "compare" / "a-b" / "compare.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| GSM8K "))
    assert row in printed
    assert "+0.5000 [+0." in row
    page = (tmp_path / "compare" / "a-b" / "compare.html").read_text()
    assert "<svg" in page
    assert "curves-base.svg" in text


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a")])
def test_less_than_two_runs_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two different runs"):
        job.Args(names)


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_run(str(tmp_path / "runs" / "a"))
    with pytest.raises(ValueError, match=r"nothing to report: .*/missing has none"):
        job.run(job.Args(("a", "missing"), cluster=Cluster(storage_path=str(tmp_path))))

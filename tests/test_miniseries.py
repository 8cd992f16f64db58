"""A ladder of ordinary runs: what its rungs are, that it does nothing twice, goes on after a kill, and compares."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import compare, miniseries
from raychat import checkpoint, tinyworld
from raychat.cluster import Cluster
from raychat.lab import findings, series
from raychat.model import registry

REPO = Path(__file__).parent.parent
SETTINGS = ("sequence_len=128", "batch_tokens=256", "eval_tokens=512", "head_dim=32", "ratio=0.001")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tinyworld.write(str(folder), scale=0.05)
    return folder


def arguments(world: Path, **settings: Any) -> miniseries.Args:
    given: dict[str, Any] = {
        "depths": (1, 2),
        "settings": SETTINGS,
        "data": (str(world / "pretrain"),),
        "vocab_size": 400,
        "bundle": str(world / "eval_bundle"),
        "max_items": 2,
        "cluster": Cluster(workers=0),
    }
    return miniseries.Args(**(given | settings))


def jobs(world: Path, **settings: Any) -> list[miniseries.Job]:
    args = arguments(world, **settings)
    return miniseries.jobs_of(args, miniseries.settings_of(args), 400)


def test_rungs_are_ordinary_runs_the_largest_first(world: Path) -> None:
    found = jobs(world)
    assert [job.train.run for job in found] == ["mini-d2", "mini-d1"]
    assert [(job.train.depth, job.train.sequence_len, job.train.head_dim) for job in found] == [
        (2, 128, 32),
        (1, 128, 32),
    ]
    assert all(job.evaluate.run == job.train.run and job.evaluate.eval_tokens == 512 for job in found)
    assert found[0].flops > found[1].flops


def test_any_settings_make_rungs(world: Path) -> None:
    found = jobs(world, rungs=("depth=1 lr_scale=0.2", "depth=1 lr_scale=0.4 steps=7"), seeds=(0, 3))
    assert {job.train.run: (job.train.lr_scale, job.train.seed) for job in found} == {
        "mini-d1-lr_scale-0.2": (0.2, 0),
        "mini-d1-lr_scale-0.2-s3": (0.2, 3),
        "mini-d1-lr_scale-0.4-steps-7": (0.4, 0),
        "mini-d1-lr_scale-0.4-steps-7-s3": (0.4, 3),
    }


def test_budgets_are_kept(world: Path) -> None:
    found = jobs(world, isoflop=(1e10, 4e10))
    assert {job.train.run for job in found} == {f"mini-d{d}-{c}" for d in (1, 2) for c in ("1e10", "4e10")}
    for job in found:
        assert job.budget is not None
        assert job.flops == pytest.approx(job.budget, rel=0.1)


def test_two_rungs_that_are_the_same_are_refused(world: Path) -> None:
    with pytest.raises(ValueError, match="two rungs are the same: d1"):
        jobs(world, depths=(1, 1))


def test_wrong_settings_are_refused_before_anything_runs(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        miniseries.run(arguments(world, settings=("dept=1",)))
    assert "dept" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name=value"):
        jobs(world, settings=("fp8",))
    with pytest.raises(ValueError, match="--isoflop"):
        arguments(world, isoflop=(0.0,))


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The storage of two ladders that differ in one setting; and what the first one's job returned."""
    storage = tmp_path_factory.mktemp("storage")
    cluster = Cluster(workers=0, storage_path=str(storage))
    returned = miniseries.run(arguments(world, cluster=cluster, seeds=(0, 1)))
    miniseries.run(arguments(world, cluster=cluster, name="slow", settings=(*SETTINGS, "lr_scale=0.05")))
    return storage, returned


def test_flops_are_those_of_the_checkpoint(trained: tuple[Path, dict[str, Any]]) -> None:
    storage, returned = trained
    rungs = {rung["rung"].run: rung for rung in returned["rungs"]}
    assert set(rungs) == {"mini-d1", "mini-d2", "mini-d1-s1", "mini-d2-s1"}
    meta = checkpoint.read_meta(checkpoint.latest(str(storage / "runs" / "mini-d2" / "base")) or "")
    model = registry.build(meta.recipe.model)
    assert rungs["mini-d2"]["flops"] == model.flops_per_token() * meta.step * 256
    head_and_blocks = [p for n, p in model.named_parameters() if n.startswith(("lm_head", "blocks")) and p.dim() == 2]
    assert rungs["mini-d2"]["params"] == sum(p.numel() for p in head_and_blocks)
    assert rungs["mini-d1"]["val_bpb"] != rungs["mini-d1-s1"]["val_bpb"]


def test_report_of_the_series(trained: tuple[Path, dict[str, Any]]) -> None:
    storage, returned = trained
    folder = storage / "runs" / "mini" / "series"
    text = (folder / "report.md").read_text()
    for rung in returned["rungs"]:
        assert f"| {rung['rung'].run} | {rung['params']:,} |" in text
    assert "| d2 | 2 |" in text  # seeds
    assert (folder / "compute.svg").exists()
    assert "<svg" in (folder / "report.html").read_text()


def test_finished_rungs_are_not_repeated(world: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    storage, returned = trained
    runs = storage / "runs"
    written = {path: path.stat().st_mtime_ns for path in runs.glob("mini-d*/base/**/*")}
    again = miniseries.run(arguments(world, cluster=Cluster(workers=0, storage_path=str(storage)), seeds=(0, 1)))
    assert again == returned
    assert {path: path.stat().st_mtime_ns for path in runs.glob("mini-d*/base/**/*")} == written


def test_compare_of_two_ladders(trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    storage, _ = trained
    compare.run(compare.Args(("mini", "slow"), cluster=Cluster(storage_path=str(storage))))
    text = (storage / "compare" / "mini-slow" / "compare.md").read_text()
    assert "## Compute multiplier" in text
    assert "| lr_scale | - | 0.05 |" in text
    assert "slow" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mini-d1: no series"):
        compare.run(compare.Args(("mini", "mini-d1"), cluster=Cluster(storage_path=str(storage))))


def measured(label: str, flops: float, bpb: float, budget: float | None = None, params: int = 1000) -> series.Measured:
    rung = series.Rung(f"x-{label}-{budget}", label, 0, budget)
    return series.Measured(rung, params, int(flops / params / 6), flops, bpb, 0.1, 1.0)


def test_multiplier_of_two_ladders_is_in_the_table() -> None:
    flops = (1e9, 1e10, 1e11)
    first, other = (
        series.Series(name, {}, [measured(f"d{i}", c, 5 * (worth * c) ** -0.05) for i, c in enumerate(flops)], [])
        for name, worth in (("a", 1.0), ("b", 2.0))
    )
    (table, *_) = findings.comparison(first, [other])
    assert table.blocks[0].rows[1][:3] == ["b", "0.050", "2.000 [2.000, 2.000]"]


def test_best_sizes_of_budgets() -> None:
    """On parabolas whose minima lie at parameters that grow as the square root of FLOPs."""
    runs = []
    for budget in (1e12, 4e12):
        for params in (10_000, 40_000, 160_000):
            bpb = 2.0 - budget / 1e14 + 0.1 * math.log(params / (0.03 * budget**0.5)) ** 2
            runs.append(measured(f"d{params}", budget, bpb, budget, params))
    parts = {section.title: section for section in findings.sections(series.Series("iso", {}, runs, []))}
    picture, table = parts["The best size for a budget"].blocks
    assert [row[1] for row in table.rows] == ["30,000", "60,000"]
    assert "FLOPs^0.50" in table.note
    assert "<svg" in picture.draw(400)
    assert len(findings.trials(series.Series("iso", {}, runs, []))) == 2  # the best of each budget


@pytest.mark.ray
@pytest.mark.long
def test_killed_in_the_middle_it_goes_on(world: Path, raychat_home: Path) -> None:
    """The driver is killed with -9 while its rungs train on Ray; the same command ends as an undisturbed one does."""
    settings = [*SETTINGS[:-1], "steps=30", "save_every=5", "compile=False"]
    command = [sys.executable, "jobs/miniseries.py", "--depths", "1", "2", "--settings", *settings]
    command += ["--data", str(world / "pretrain"), "--vocab-size", "400", "--bundle", str(world / "eval_bundle")]
    command += ["--max-items", "2", "--parallel", "2"]
    runs = raychat_home / "runs"
    driver = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(runs.glob("mini-d*/base/step_*/meta.json")) and driver.poll() is None:
            time.sleep(0.05)
    finally:
        driver.kill()
        assert driver.wait() == -signal.SIGKILL  # else it failed, or was done, before
    assert (
        not (runs / "mini-d1" / "base" / "eval.json").exists() or not (runs / "mini-d2" / "base" / "eval.json").exists()
    )
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = arguments(world, settings=tuple(settings), name="whole")
    miniseries.run(undisturbed)
    for depth in (1, 2):
        found = [
            json.loads((runs / f"{name}-d{depth}" / "base" / "summary.json").read_text()) for name in ("mini", "whole")
        ]
        assert found[0]["steps"] == found[1]["steps"] == 30
        assert found[0]["val_bpb"] == pytest.approx(found[1]["val_bpb"], rel=1e-4)
        steps = [
            json.loads(line)["step"] for line in (runs / f"mini-d{depth}/base/metrics.jsonl").read_text().splitlines()
        ]
        assert sorted(set(steps)) == list(range(1, 31))
    assert (runs / "mini" / "series" / "report.html").exists()

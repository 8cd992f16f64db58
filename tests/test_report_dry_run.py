"""What a dry run says of a stage is what the stage then does, and it refuses what the stage would refuse."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import toy
from tiny import byte_tokenizer

from jobs import base_train, mid_train, sft_train, speedrun
from raychat import checkpoint, paths
from raychat.cluster import Cluster
from raychat.data import hub
from raychat.data.batches import steps_of
from raychat.data.shards import TokenRows
from raychat.dist import World
from raychat.model import registry
from raychat.optim import build_optimizer
from raychat.optim.groups import Matrices
from raychat.recipe import Runtime
from raychat.report import dry_run
from raychat.train import scaling

REPO = Path(__file__).parent.parent
CPU = torch.device("cpu")


def cells(counted: dry_run.Figures, title: str) -> dict[str, list[str]]:
    """Return the rows of a table by their first cell."""
    table = next(t for t in dry_run.tables_of(counted) if t.title.startswith(title))
    return {first: rest for first, *rest in table.rows}


def of_depth(depth: int, workers: int = 8, price_per_hour: float | None = None) -> dry_run.Figures:
    sizes = scaling.from_depth(depth)
    recipe = replace(toy.recipe(), model=registry.architecture("GPT", **sizes.model()), steps=sizes.steps)
    recipe = replace(recipe, batch_tokens=sizes.batch_tokens, lr_scale=sizes.lr_scale)
    return dry_run.count(recipe, Runtime(), workers, price_per_hour)


def job(folder: Path, **settings: Any) -> base_train.Args:
    """A job of five steps on two small files of text, in this process."""
    folder.mkdir(exist_ok=True)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("one two three four\n\n" * 200)
    small: dict[str, Any] = {"depth": 1, "sequence_len": 32, "batch_tokens": 32 * 3, "steps": 5, "eval_tokens": 64}
    values = {"run": "r", "data": (str(folder),), "cluster": Cluster(workers=0), "dry_run": True} | small | settings
    return base_train.Args(**values)


def test_parameters_and_rates_are_the_optimizers() -> None:
    model = toy.model()
    groups = {group.name: group for group in dry_run.groups_of(model, toy.recipe(model))}
    assert sum(group.num_params for group in groups.values()) == sum(p.numel() for p in model.parameters())
    assert groups["embeddings"].num_params == groups["head"].num_params == model.wte.weight.numel()
    assert groups["value embeddings"].num_params == sum(p.numel() for p in model.value_embeds.parameters())
    assert groups["matrices"].num_params == sum(p.numel() for p in model.blocks.parameters())
    assert groups["scalars (x0_scale)"].num_params == toy.CONFIG.n_layer
    optimizer = build_optimizer(model, lr_scale=0.3, weight_decay=0.1)
    muon = {place.member.lr for group in optimizer._groups if isinstance(group, Matrices) for place in group._places}
    assert muon == {groups["matrices"].lr}
    adam = {own.rates.lr for group in optimizer._groups if not isinstance(group, Matrices) for own in owned(group)}
    assert adam == {group.lr for group in groups.values() if group.optimizer == "AdamW"}


def owned(group: Any) -> list[Any]:
    return group._own if isinstance(group._own, list) else [group._own]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_micro_batches_are_those_of_a_step(tmp_path: Path, workers: int) -> None:
    recipe = toy.recipe(steps=3)
    counted = dry_run.count(recipe, Runtime(device_rows=2), workers)
    rows = TokenRows(toy.token_folder(str(tmp_path)))
    split = {"rows_per_step": recipe.rows_per_step, "device_rows": 2, "world": World(0, workers), "device": CPU}
    batches = list(next(steps_of(rows, start=0, **split)).batches)  # type: ignore[arg-type]
    assert set(cells(counted, "Micro-batches")[str(workers)]) == {f"{len(batches)} x {len(batches[0].inputs)}"}


def test_time_and_cost_follow_from_flops() -> None:
    d12 = of_depth(12)
    flops = d12.flops_per_token * d12.tokens
    seconds = flops / (8 * 989e12) / dry_run.UTILISATION
    assert d12.flops_per_token == pytest.approx(6 * 12 * 12 * 768**2 + 6 * 32768 * 768, rel=0.2)  # and attention
    assert d12.devices["H100"].wall_s == pytest.approx(seconds)
    assert d12.devices["A100"].wall_s == pytest.approx(seconds * 989 / 312)
    assert d12.devices["H100"].cost == pytest.approx(8 * 3.0 * seconds / 3600)
    assert of_depth(12, price_per_hour=10.0).devices["H100"].cost == pytest.approx(10 * seconds / 3600)
    assert d12.devices[dry_run.CPU].wall_s > 100 * seconds
    assert d12.devices[dry_run.CPU].cost is None


def test_memory_that_is_too_small_is_named() -> None:
    assert cells(of_depth(32), "Each device")["memory, GiB"] == ["80", "80", "24: too small", "-"]
    assert cells(of_depth(12), "Each device")["memory, GiB"] == ["80", "80", "24", "-"]


def test_dry_run_says_what_the_run_does(tmp_path: Path, raychat_home: Path) -> None:
    args = job(tmp_path / "text")
    byte_tokenizer().save(str(raychat_home / "runs" / "r" / "tokenizer"))
    said = base_train.run(args)
    summary = base_train.run(replace(args, dry_run=False))
    assert (said["steps"], said["tokens"]) == (summary["steps"], summary["tokens"])
    assert sum(group.num_params for group in said["groups"]) == summary["num_params"]
    recipe = checkpoint.read_meta(summary["checkpoint"]).recipe
    assert replace(recipe, inputs=None) == said["recipe"]
    with pytest.raises(ValueError, match="seed: there 0, now 1"):
        base_train.run(replace(args, seed=1))


@pytest.mark.parametrize("name", ["climbmix", "tinyworld", "tinyshakespeare"])
def test_shards_are_named_without_network_and_writing(
    raychat_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(hub.TEXTS, "tinyshakespeare", "http://127.0.0.1:9")
    base_train.run(job(raychat_home / "text", data=(name,), steps=40_000_000))
    folder = raychat_home / "data" / name
    hubs = f"123 shards, {folder}/shard_00000.parquet to shard_00122.parquet; shard_06542.parquet for validation"
    assert f"Data: {hubs if name == 'climbmix' else f'{name}; {name} will be made or downloaded first'}\n" in (
        capsys.readouterr().out
    )
    assert not folder.exists()


def test_shards_that_are_there_are_named(
    tmp_path: Path, raychat_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_train.run(job(tmp_path / "text"))
    assert f"Data: 1 shards, {tmp_path}/text/a.txt to a.txt; b.txt for validation\n" in capsys.readouterr().out
    base_train.run(job(tmp_path / "text", data=(f"{tmp_path}/text/a.txt",)))
    assert f"Data: {tmp_path}/text/a.txt, its end for validation\n" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [mid_train, sft_train])
def test_stage_of_unknown_length_has_the_time_of_a_step(raychat_home: Path, stage: ModuleType) -> None:
    base = toy.meta(3, steps=3, data=("tinyworld",))
    checkpoint.save_checkpoint(str(raychat_home / "runs/r/base"), toy.model(), None, byte_tokenizer(), base)
    args = stage.Args(run="r", lr=0.5, dry_run=True, cluster=Cluster(workers=0))
    said, known = stage.run(args), stage.run(replace(args, steps=7))
    assert (said["steps"], said["tokens"], said["devices"]["H100"].wall_s) == (None, None, None)
    assert (known["steps"], known["tokens"]) == (7, 7 * 6 * toy.CONFIG.sequence_len)
    assert known["devices"]["H100"].wall_s == pytest.approx(7 * said["devices"]["H100"].step_s)
    full = dry_run.groups_of(toy.model(), base.recipe)
    assert [group.lr for group in said["groups"]] == [0.5 * group.lr for group in full]
    assert said["recipe"].parent == "runs/r/base/step_000003"
    assert [path.name for path in raychat_home.iterdir()] == ["runs"]
    with pytest.raises(ValueError, match="no task is called 'mmlv'"):
        stage.run(replace(args, tasks=("mmlv",)))
    with pytest.raises(ValueError, match="is not a folder"):
        stage.run(replace(args, task_data="nowhere"))
    with pytest.raises(ValueError, match="no checkpoint of"):
        stage.run(replace(args, run="absent"))


def test_dry_run_needs_no_ray_and_writes_nothing(raychat_home: Path) -> None:
    program = (
        "import sys; from jobs import speedrun; speedrun.run(speedrun.Args(dry_run=True)); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "## Parameters" in done.stdout
    assert not list(raychat_home.iterdir())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"depth": 0}, "--depth is 0"),
        ({"batch_tokens": 100}, "multiple of sequence_len 32"),
        ({"window_pattern": "SX"}, "window_pattern"),
        ({"keep": -1}, "--keep is -1"),
        ({"data": ("nowhere",)}, "nowhere does not exist"),
        ({"num_shards": -1}, "--num-shards is -1"),
    ],
)
def test_settings_that_the_run_refuses_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        base_train.run(job(tmp_path / "text", **wrong))


def test_speedrun_counts_the_preset(raychat_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = speedrun.Args(dry_run=True, price_per_hour=2.0)
    said, tiny = speedrun.run(args), speedrun.pipeline(args)
    assert said["base"]["recipe"].model["vocab_size"] == tiny.tok_train.vocab_size
    planned = (tiny.base_train.steps, tiny.mid_train.steps, tiny.sft_train.steps)
    assert tuple(figures["steps"] for figures in said.values()) == planned
    assert said["sft"]["recipe"].batch_tokens == tiny.sft_train.batch_tokens
    for figures in said.values():
        assert figures["devices"]["H100"].cost == pytest.approx(2.0 * figures["devices"]["H100"].wall_s / 3600)
    printed = capsys.readouterr().out
    assert all(f"| steps | {steps:,} |" in printed for steps in planned)
    paths.write_json(str(raychat_home / "runs" / "tiny" / "tokenizer" / "train.json"), {"settings": {"vocab_size": 9}})
    byte_tokenizer().save(str(raychat_home / "runs" / "tiny" / "tokenizer"))
    with pytest.raises(ValueError, match="has a tokenizer trained with"):
        speedrun.run(args)

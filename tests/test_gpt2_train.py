"""gpt2_train: its presets, a run from its start, from a checkpoint and from another run, and what is refused."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import toy
from safetensors.torch import load_file

from jobs import gpt2_train
from jobs.gpt2_train import Args
from raychat import checkpoint, paths
from raychat.cluster import Cluster

CPU = torch.device("cpu")
TEXT = "".join(f"The {size} {animal} is here.\n" for size in ("big", "small", "old") for animal in ("cat", "dog", "ox"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the run `parent`, of 40 steps on a text of 40 symbols."""
    root = tmp_path_factory.mktemp("gpt2")
    (root / "text.txt").write_text(TEXT * 20)
    (root / "other.txt").write_text("cats bite dogs. dogs bite big cats\n" * 100)
    gpt2_train.run(args(root, run="parent", keep=0))
    return root


def args(root: Path, **changes: Any) -> Args:
    """Settings of a tiny GPT-2 in this process."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "sequence_len": 16, "dropout": 0.1, "batch_tokens": 64}
    times = {"steps": 40, "warmup_steps": 2, "eval_every": 20, "save_every": 20, "lr": 0.01, "compile": False}
    where = {"data": (str(root / "text.txt"),), "cluster": Cluster(workers=0, storage_path=str(root))}
    return Args(**(sizes | times | where | changes))


def weights(path: str) -> bytes:
    return Path(path, "model.safetensors").read_bytes()


def test_presets_are_what_the_command_line_starts_from() -> None:
    large = gpt2_train.parse(["--preset", "gpt2", "--lr", "1e-3"])
    assert (large.n_layer, large.n_embd, large.sequence_len, large.steps, large.lr) == (12, 768, 1024, 600_000, 1e-3)
    assert (large.data, large.tokenizer, large.batch_tokens, large.final_lr) == (("openwebtext",), "gpt2", 491_520, 0.1)
    tuned = gpt2_train.parse(["--preset", "shakespeare", "--init-from", "x"])
    assert (tuned.init_from, tuned.lr, tuned.final_lr, tuned.batch_tokens, tuned.steps) == ("x", 3e-5, 1.0, 32_768, 20)


def test_characters_on_gpus_have_the_larger_model() -> None:
    small = gpt2_train.parse(["--cluster.gpus-per-worker", "0"])
    assert (small.n_layer, small.n_head, small.n_embd, small.sequence_len, small.steps) == (4, 4, 128, 64, 2000)
    assert (small.lr, small.beta2, small.warmup_steps, small.batch_tokens, small.dropout) == (3e-3, 0.99, 100, 768, 0.0)
    large = gpt2_train.parse(["--cluster.gpus-per-worker", "1", "--steps", "9"])
    assert (large.n_layer, large.n_head, large.n_embd, large.sequence_len, large.steps) == (6, 6, 384, 256, 9)
    assert (large.lr, large.batch_tokens, large.dropout) == (1e-3, 16_384, 0.2)


def test_run_learns_and_prints_its_losses_and_a_sample(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = gpt2_train.run(args(storage, run="one", steps=60, lr=0.02))
    assert summary["val_loss"] < summary["unigram_bpb"] * math.log(2) - 0.3
    assert summary["val_loss"] == pytest.approx(summary["val_bpb"] * math.log(2))  # a character is a byte
    printed = capsys.readouterr().out
    assert f"val_loss {summary['val_loss']:.4f}" in printed
    sample = printed.split("---------------\n")[-2]
    assert len(sample) > 16 * 4  # of more than a context
    assert set(sample) <= set(TEXT)
    assert checkpoint.load_tokenizer(summary["checkpoint"]).tokens == [c.encode() for c in sorted(set(TEXT))]


def test_killed_run_ends_in_the_same_weights(storage: Path, tmp_path: Path) -> None:
    whole = storage / "runs" / "parent"
    shutil.copytree(whole / "tokenizer", tmp_path / "runs" / "cut" / "tokenizer")
    shutil.copytree(whole / "base" / "step_000020", tmp_path / "runs" / "cut" / "base" / "step_000020")
    resumed = gpt2_train.run(args(storage, run="cut", cluster=Cluster(workers=0, storage_path=str(tmp_path))))
    assert weights(resumed["checkpoint"]) == weights(str(whole / "base" / "step_000040"))


def test_fine_tuning_starts_from_the_weights_and_lowers_the_loss(storage: Path) -> None:
    data = (str(storage / "other.txt"),)
    settings = args(storage, init_from="parent", data=data, lr=0.01, final_lr=1.0, warmup_steps=0)
    first, last = (gpt2_train.run(replace(settings, run=f"tuned{steps}", steps=steps)) for steps in (1, 20))
    fresh = gpt2_train.run(replace(settings, run="fresh", init_from=None, data=data, steps=1))
    assert first["val_loss"] < fresh["val_loss"] - 0.2
    assert last["val_loss"] < first["val_loss"] - 0.3
    before, after = (
        checkpoint.load_model(path, CPU)[0].state_dict()
        for path in (str(storage / "runs/parent/base/step_000040"), last["checkpoint"])
    )
    assert not [name for name in before if torch.equal(before[name], after[name])]  # vectors are trained, too


def test_context_is_cut_and_dropout_is_another(storage: Path) -> None:
    cut = args(storage, run="shorter", init_from="parent-base@40", sequence_len=8, dropout=0.25, steps=1, lr=1e-9)
    path = gpt2_train.run(cut)["checkpoint"]
    parent = str(storage / "runs" / "parent" / "base" / "step_000040")
    got, expected = checkpoint.load_model(path, CPU)[0], checkpoint.load_model(parent, CPU)[0]
    assert (got.config.sequence_len, got.config.dropout, expected.config.dropout) == (8, 0.25, 0.1)
    assert torch.allclose(got.wpe.weight, expected.wpe.weight[:8], atol=1e-6)
    assert load_file(Path(path, "optimizer_000.safetensors"))["optimizer/step/0"] == 1  # without the parent's momenta
    ids = torch.arange(8)[None]
    assert torch.allclose(got.eval()(ids), expected.eval()(ids), atol=1e-4)


def test_run_with_other_rates_is_refused(storage: Path) -> None:
    for changes, message in [
        ({"lr": 0.02}, "lr: there 0.01, now 0.02"),
        ({"beta2": 0.95}, "beta2: there 0.99, now 0.95"),
        ({"warmup_steps": 3}, "warmup_steps: there 2, now 3"),
        ({"dropout": 0.0}, "dropout: there 0.1, now 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            gpt2_train.run(args(storage, run="parent", **changes))


def test_dry_run_writes_nothing(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = gpt2_train.run(args(storage, run="dry", dry_run=True))
    assert (figures["steps"], figures["tokens"]) == (40, 40 * 64)
    assert {group.lr for group in figures["groups"]} == {0.01}
    assert "0.1, of matrices and embeddings" in capsys.readouterr().out
    assert not (storage / "runs" / "dry").exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"batch_tokens": 65}, "batch-tokens is 65; expected a multiple of 16"),
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"lr": 0.0}, "lr is 0.0; expected more than 0"),
        ({"final_lr": 1.5}, "final-lr is 1.5; expected 1 or less"),
        ({"init_from": "./absent"}, "there is no folder ./absent"),
        ({"init_from": "gpt2-xl", "dry_run": True}, "import gpt2-xl first"),
        ({"init_from": "parent", "sequence_len": 32}, "a GPT2 with a context of 16; expected .* at least .* 32"),
        ({"init_from": "gpt"}, "gpt is a GPT with"),
        ({"data": ("text.txt", "other.txt")}, "characters needs --data of one text file"),
        ({"run": "parent", "data": ("other.txt",)}, "another tokenizer"),
        ({"run": "empty", "tokenizer": None}, "no tokenizer at"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    storage: Path, wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(storage)
    if wrong.get("init_from") == "gpt" and not (storage / "runs" / "gpt").exists():
        folder = str(storage / "runs" / "gpt" / "base")
        checkpoint.save_checkpoint(folder, toy.model(), None, tiny.byte_tokenizer(), toy.meta(1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gpt2_train.run(args(storage, **({"run": "refused"} | wrong)))
    assert not paths.exists(str(storage / "runs" / "refused"))

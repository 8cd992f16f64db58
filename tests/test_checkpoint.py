"""Checkpoints round-trip, appear whole, and refuse what is foreign."""

from pathlib import Path

import pytest
import tiny
import torch
import toy

from raychat import checkpoint, paths
from raychat.model.base import Model
from raychat.optim import build_optimizer
from raychat.optim.muon_adamw import MuonAdamW

CPU = torch.device("cpu")


def optimizer_of(model: Model) -> MuonAdamW:
    return build_optimizer(model, lr_scale=1.0, weight_decay=0.28)


def one_step(model: torch.nn.Module, optimizer: MuonAdamW, seed: int = 0) -> None:
    idx = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(idx).square().mean().backward()
    optimizer.step(1.0, 0.9, 1.0)
    optimizer.zero_grad()


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_saved_training_goes_on_to_the_same_weights(tmp_path: Path, storage: str) -> None:
    folder = str(tmp_path) if storage == "local" else f"memory://{tmp_path.name}"
    model = toy.model()
    optimizer = optimizer_of(model)
    one_step(model, optimizer)
    path = checkpoint.save_checkpoint(folder, model, optimizer, toy.byte_tokenizer(), toy.meta(1, seed=3))
    one_step(model, optimizer, seed=1)

    loaded, meta = checkpoint.load_model(path, CPU)
    again = optimizer_of(loaded)
    checkpoint.load_optimizer(path, again)
    one_step(loaded, again, seed=1)
    assert meta.step == 1
    assert meta.recipe == toy.recipe(seed=3)
    assert loaded.config == toy.CONFIG
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert checkpoint.load_tokenizer(path).fingerprint == toy.byte_tokenizer().fingerprint


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path: Path) -> None:
    model = toy.model()
    for step in (5, 10, 100):
        checkpoint.save_checkpoint(str(tmp_path), model, None, toy.byte_tokenizer(), toy.meta(step), keep=2)
    (tmp_path / "step_000200").mkdir()  # killed before its meta.json
    assert [paths.name(p) for p in checkpoint.all_in(str(tmp_path))] == ["step_000010", "step_000100"]
    assert paths.name(checkpoint.latest(str(tmp_path)) or "") == "step_000100"
    assert checkpoint.latest(str(tmp_path / "nothing")) is None


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a checkpoint.*meta\.json"):
        checkpoint.load_model(str(tmp_path), CPU)
    (tmp_path / "meta.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="checkpoint format"):
        checkpoint.load_model(str(tmp_path), CPU)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(str(tmp_path), toy.model(), None, toy.byte_tokenizer(), toy.meta(1))
    meta = paths.read_json(path + "/meta.json")
    meta["recipe"]["model"]["n_embd"] = 64
    paths.write_json(path + "/meta.json", meta)
    with pytest.raises(ValueError, match=r"got .*32.* expected .*64"):
        checkpoint.load_model(path, CPU)


def test_weights_fit_a_shorter_context_and_no_longer_one(tmp_path: Path) -> None:
    model = tiny.gpt2(sequence_len=24)
    path = checkpoint.save_checkpoint(str(tmp_path), model, None, toy.byte_tokenizer(), toy.meta(1, model))
    shorter = tiny.gpt2(seed=1, sequence_len=16)
    checkpoint.load_weights(path, shorter)
    ids = torch.arange(16)[None]
    assert torch.equal(shorter(ids), model(ids))
    with pytest.raises(ValueError, match=r"wpe.weight: got \(24, 64\), expected \(32, 64\)"):
        checkpoint.load_weights(path, tiny.gpt2(sequence_len=32))


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    path = Path(checkpoint.save_checkpoint(str(tmp_path), toy.model(), None, toy.byte_tokenizer(), toy.meta(1)))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="safetensors"):
        checkpoint.load_model(str(path), CPU)


def test_a_run_without_the_wanted_stage_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint of sft or mid"):
        checkpoint.latest_of(str(tmp_path), ("sft", "mid"))

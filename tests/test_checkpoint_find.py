"""A damaged or incomplete checkpoint is never taken, and what is wrong with it is said."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import toy

from raychat import checkpoint, paths
from raychat.optim import build_optimizer

CPU = torch.device("cpu")
FILES = ("model.safetensors", "optimizer_000.safetensors", "tokenizer/tokenizer.json")


def save(folder: Path, step: int) -> Path:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.1)
    return Path(checkpoint.save_checkpoint(str(folder), model, optimizer, toy.byte_tokenizer(), toy.meta(step)))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def without_record(path: Path) -> None:
    """Make a checkpoint what an older version wrote."""
    meta = json.loads((path / "meta.json").read_text())
    del meta["files"]
    (path / "meta.json").write_text(json.dumps(meta))


def test_every_file_is_recorded_with_its_size_and_sha256(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    recorded = json.loads((path / "meta.json").read_text())["files"]
    there = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    del there["meta.json"]
    assert recorded == {n: {"num_bytes": len(b), "sha256": sha256(b).hexdigest()} for n, b in there.items()}
    assert set(recorded) == set(FILES)


@pytest.mark.parametrize("file", [*FILES, "meta.json"])
@pytest.mark.parametrize("damage", [tear, Path.unlink])
def test_newest_is_the_one_with_all_its_files_in_full_size(
    tmp_path: Path, file: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = save(tmp_path, 5), save(tmp_path, 10)
    damage(torn / file)
    if file == "meta.json" and damage is tear:
        (torn / file).write_text("{")  # without its last byte, a newline, it would still be whole
    assert checkpoint.latest(str(tmp_path)) == str(whole)
    assert checkpoint.all_in(str(tmp_path)) == [str(whole)]
    assert checkpoint.latest_verified(str(tmp_path)) == str(whole)
    (line, *more) = {line for line in capsys.readouterr().out.splitlines() if file in line}
    assert line.startswith(f"skipped checkpoint {torn}: ")
    assert file == "meta.json" or (not more and "got" in line and "expected" in line)


@pytest.mark.parametrize("file", FILES)
def test_resume_takes_the_newest_whose_bytes_are_those_that_were_written(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, flipped = save(tmp_path, 5), save(tmp_path, 10)
    assert checkpoint.latest_verified(str(tmp_path)) == str(flipped)
    assert capsys.readouterr().out == ""
    flip_a_bit(flipped / file)
    assert checkpoint.latest_verified(str(tmp_path)) == str(whole)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{flipped / file}: got bytes of sha256 " in line


def test_when_all_are_damaged_nothing_starts_anew(tmp_path: Path) -> None:
    assert checkpoint.latest_verified(str(tmp_path)) is None
    flip_a_bit(save(tmp_path, 5) / "model.safetensors")
    with pytest.raises(ValueError, match=r"all checkpoints of .* are damaged"):
        checkpoint.latest_verified(str(tmp_path))


def test_a_stage_that_never_completed_one_starts_anew(tmp_path: Path) -> None:
    (save(tmp_path, 5) / "meta.json").unlink()
    assert checkpoint.latest_verified(str(tmp_path)) is None


@pytest.mark.parametrize("damage", [tear, flip_a_bit, Path.unlink])
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = save(tmp_path, 5)
    for file in FILES:
        damage(path / file)
    with pytest.raises(ValueError, match=r"model\.safetensors: got .*expected"):
        checkpoint.load_model(str(path), CPU)
    with pytest.raises(ValueError, match=r"tokenizer\.json: got .*expected"):
        checkpoint.load_tokenizer(str(path))
    with pytest.raises(ValueError, match=r"safetensors: got .*expected"):
        checkpoint.verify(str(path))


def test_damage_is_seen_on_an_object_store(tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}"
    model = toy.model()
    first, second = (
        checkpoint.save_checkpoint(folder, model, None, toy.byte_tokenizer(), toy.meta(n)) for n in (5, 10)
    )
    assert checkpoint.latest_verified(folder) == checkpoint.latest(folder) == second
    weights = paths.join(second, "model.safetensors")
    content = bytearray(paths.read_bytes(weights))
    content[-1] ^= 1
    paths.write_bytes(weights, bytes(content))
    assert checkpoint.latest(folder) == second
    assert checkpoint.latest_verified(folder) == first
    paths.write_bytes(weights, bytes(content[:-1]))
    assert checkpoint.latest(folder) == first


def test_checkpoints_without_a_record_are_read_as_before(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    without_record(path)
    assert checkpoint.read_meta(str(path)).files == {}
    assert checkpoint.latest(str(tmp_path)) == checkpoint.latest_verified(str(tmp_path)) == str(path)
    assert checkpoint.load_model(str(path), CPU)[1].step == 5
    assert checkpoint.load_tokenizer(str(path)).fingerprint == toy.byte_tokenizer().fingerprint


def test_a_record_that_is_none_is_damage(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"files": {"model.safetensors": 3}}))
    assert checkpoint.latest(str(tmp_path)) is None
    with pytest.raises(ValueError, match="record of files"):
        checkpoint.load_model(str(path), CPU)


def test_a_removed_checkpoint_is_no_candidate(tmp_path: Path) -> None:
    save(tmp_path, 5)
    shutil.rmtree(save(tmp_path, 10))
    assert [paths.name(path) for path in checkpoint.all_in(str(tmp_path))] == ["step_000005"]

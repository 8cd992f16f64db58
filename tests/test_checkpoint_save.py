"""A checkpoint is written whole or not at all, on all workers together, and never takes the place of a better one."""

import errno
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import toy

from raychat import checkpoint, paths
from raychat.checkpoint import save as saving
from raychat.optim import build_optimizer

FILES = ("optimizer_000.safetensors", "model.safetensors", "tokenizer.json", "meta.json")


def begin(folder: str, step: int, keep: int = 2, nan: bool = False, **metrics: float) -> checkpoint.Saving:
    model = toy.model()
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.1)
    if nan:
        with torch.no_grad():
            model.wte.weight[3, 4] = float("nan")
    meta = replace(toy.meta(step), metrics=metrics)
    return checkpoint.begin_checkpoint(folder, model, optimizer, toy.byte_tokenizer(), meta, keep)


def save(folder: str, step: int, keep: int = 2, nan: bool = False, **metrics: float) -> str:
    return begin(folder, step, keep, nan, **metrics).publish()


def steps(folder: str) -> list[int]:
    return [checkpoint.read_meta(path).step for path in checkpoint.all_in(folder)]


def fill_disk(patch: pytest.MonkeyPatch, file: str) -> None:
    """Let the disk be full when half of a file is written."""
    write = paths.write_bytes

    def write_bytes(path: str, data: bytes) -> None:
        if paths.name(path) != file:
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", path)

    patch.setattr(paths, "write_bytes", write_bytes)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/stage"
    return str(tmp_path / "stage") if request.param == "local" else f"memory://{tmp_path.name}"


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_leaves_the_checkpoints_so_far(folder: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(folder, step)
    before = {path: paths.sizes(path) for path in checkpoint.all_in(folder)}
    with monkeypatch.context() as patch:
        fill_disk(patch, file)
        with pytest.raises(OSError, match="No space left"):
            save(folder, 3)
    assert steps(folder) == [1, 2]
    assert {path: paths.sizes(path) for path in checkpoint.all_in(folder)} == before
    assert sum(paths.sizes(folder).values()) == sum(sum(sizes.values()) for sizes in before.values())  # no litter
    assert checkpoint.latest_verified(folder) == paths.join(folder, "step_000002")
    save(folder, 3)
    assert steps(folder) == [2, 3]


@pytest.mark.parametrize("file", FILES)
def test_killed_while_it_saves_a_half_written_folder_is_never_taken(
    folder: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 1)
    with monkeypatch.context() as patch:
        fill_disk(patch, file)
        patch.setattr(paths, "remove", lambda path: None)  # nobody tidies up after a kill
        with pytest.raises(OSError, match="No space left"):
            save(folder, 2)
    assert checkpoint.latest(folder) == checkpoint.latest_verified(folder) == paths.join(folder, "step_000001")
    save(folder, 2)
    assert steps(folder) == [1, 2]


def test_a_shard_that_a_killed_save_of_more_workers_left_is_not_taken_along(folder: str) -> None:
    unfinished = ".tmp-step_000002" if paths.is_local(folder) else "step_000002"
    paths.write_bytes(paths.join(folder, unfinished, "optimizer_007.safetensors"), b"")
    assert "optimizer_007.safetensors" not in paths.names(save(folder, 2))


def test_weights_that_are_not_finite_are_not_saved(folder: str) -> None:
    save(folder, 1)
    with pytest.raises(FloatingPointError, match=r"step_000002 is not saved: .* in wte\.weight"):
        save(folder, 2, nan=True)
    assert paths.names(folder) == ["step_000001"]


def test_the_newest_stay_and_the_best(folder: str) -> None:
    for step, bpb in enumerate((float("nan"), 1.1, 1.2, 1.3, 1.2, 1.25), start=1):
        save(folder, step, val_bpb=bpb)
    assert steps(folder) == [2, 5, 6]
    assert paths.name(checkpoint.latest(folder) or "") == "step_000006"
    save(folder, 7, val_bpb=1.0)
    assert steps(folder) == [6, 7]  # the best is among the newest
    save(folder, 8, keep=1)
    assert steps(folder) == [7, 8]


def test_of_equal_checkpoints_the_measured_one_is_the_best(folder: str) -> None:
    for step, bpb in enumerate((1.1, 1.1, 1.3, 1.3), start=1):  # the second has the figure of the first
        save(folder, step, keep=1, val_bpb=bpb)
    assert steps(folder) == [1, 4]


def test_where_there_is_a_reward_it_decides(folder: str) -> None:
    for step, (reward, bpb) in enumerate(((0.7, 1.3), (0.9, 1.2), (0.8, 1.1)), start=1):
        save(folder, step, keep=1, val_reward=reward, val_bpb=bpb)
    assert steps(folder) == [2, 3]


def test_a_damaged_later_checkpoint_takes_no_place_of_a_good_one(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save(folder, 3)
    damaged = Path(save(folder, 9)) / "model.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    save(folder, 5, keep=1)
    assert steps(folder) == [5, 9]
    assert checkpoint.latest_verified(folder) == paths.join(folder, "step_000005")


def test_a_storage_that_loses_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = saving.checksums.write

    def elsewhere(folder: str, name: str, data: bytes) -> dict[str, saving.Checksum]:
        return write(folder if name != "optimizer_000.safetensors" else str(tmp_path / "other disk"), name, data)

    monkeypatch.setattr(saving.checksums, "write", elsewhere)
    with pytest.raises(ValueError, match=r"optimizer_000.*no such file.*share this storage"):
        save(str(tmp_path / "stage"), 1)
    assert paths.names(str(tmp_path / "stage")) == []


def _outcome(call: object) -> str:
    try:
        return str(call())  # type: ignore[operator]
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    stage, seen = f"{folder}/stage", list[str]()
    for step in (1, 2):
        save(stage, step)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "optimizer_001.safetensors")
        seen.append(_outcome(lambda: save(stage, 3)))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "meta.json")
        seen.append(_outcome(lambda: save(stage, 3)))
    seen.append(_outcome(lambda: save(stage, 3, nan=rank == 1)))
    torch.distributed.barrier()
    if rank == 0:
        shard = Path(f"{stage}/step_000002/optimizer_001.safetensors")
        shard.write_bytes(bytes(shard.stat().st_size))
    torch.distributed.barrier()
    seen.append(_outcome(lambda: checkpoint.latest_verified(stage)))
    seen.append(_outcome(lambda: checkpoint.verify(f"{stage}/step_000002")))
    go, write = threading.Event(), paths.write_bytes
    with pytest.MonkeyPatch.context() as patch:  # the disk of worker 1 is slow
        patch.setattr(paths, "write_bytes", lambda path, data: (rank == 0 or go.wait(), write(path, data)))
        saving = begin(f"{folder}/slow", 1)
        seen.append(str(saving.is_written()))
        go.set()
        seen.append(saving.publish())
    Path(f"{folder}/seen-{rank}").write_text("\n".join(seen))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_workers_fail_together_and_resume_from_the_same(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    stage = tmp_path / "stage"
    assert [path.name for path in sorted(stage.iterdir())] == ["step_000001", "step_000002"]
    first, second = ((tmp_path / f"seen-{rank}").read_text().splitlines() for rank in (0, 1))
    assert first[0].startswith("RuntimeError: worker 1 failed: OSError: ")
    assert second[0].startswith("OSError: ")
    assert first[1].startswith("OSError: ")
    assert second[1].startswith("RuntimeError: worker 0 failed: OSError: ")
    assert first[2] == second[2]
    assert first[2].startswith("FloatingPointError: ")
    assert "wte.weight (worker 1)" in first[2]
    assert first[3:] == second[3:]
    assert first[3] == str(stage / "step_000001")
    assert "optimizer_001.safetensors: got bytes of sha256" in first[4]
    assert first[5:] == ["False", f"{tmp_path}/slow/step_000001"]
    assert checkpoint.all_in(f"{tmp_path}/slow") == first[6:]

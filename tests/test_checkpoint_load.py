"""Each worker reads its part of the optimizer's state, whatever number of workers wrote it."""

from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import save

from raychat import checkpoint, paths
from raychat.dist import World
from raychat.optim import Optimizer, build_optimizer, muon_adamw


def optimizer_of(rank: int, size: int) -> Optimizer:
    """The optimizer as one of several workers has it; nothing here calls the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon_adamw, "world", lambda: World(rank, size))
        return build_optimizer(toy.model(), lr_scale=1.0, weight_decay=0.1)


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    whole = optimizer_of(0, 1).state()
    return {
        key: torch.rand(value.shape, generator=draw).to(value.dtype) if value.is_floating_point() else value + 7
        for key, value in whole.items()
    }


def written_by(size: int, folder: str) -> None:
    state = random_state()
    for rank in range(size):
        one = optimizer_of(rank, size)
        one.load_state(state)
        paths.write_bytes(paths.join(folder, f"optimizer_{rank:03d}.safetensors"), save(one.state()))


@pytest.mark.parametrize("storage", ["local", "memory"])
@pytest.mark.parametrize("wrote", [1, 2, 3])
def test_any_number_of_workers_reads_what_any_number_wrote(tmp_path: Path, wrote: int, storage: str) -> None:
    folder = str(tmp_path) if storage == "local" else f"memory://{tmp_path.name}"
    written_by(wrote, folder)
    for rank in range(2):
        expected, got = optimizer_of(rank, 2), optimizer_of(rank, 2)
        expected.load_state(random_state())
        checkpoint.load_optimizer(folder, got)
        assert got.num_steps == 7
        assert got.state().keys() == expected.state().keys()
        assert all(torch.equal(value, got.state()[key]) for key, value in expected.state().items())


def test_a_worker_fetches_only_the_files_that_hold_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_by(3, f"memory://{tmp_path.name}")
    fetched: list[str] = []
    local = paths.local
    monkeypatch.setattr(paths, "local", lambda path: fetched.append(paths.name(path)) or local(path))  # type: ignore[func-returns-value]
    checkpoint.load_optimizer(f"memory://{tmp_path.name}", optimizer_of(2, 3))
    # those of the first worker are small parameters, which every worker keeps, and the number of steps
    assert sorted(fetched) == ["optimizer_000.safetensors", "optimizer_002.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_torn_optimizer_files_are_refused_by_name(tmp_path: Path, kept: int) -> None:
    written_by(1, str(tmp_path))
    file = tmp_path / "optimizer_000.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"optimizer_000\.safetensors cannot be read"):
        checkpoint.load_optimizer(str(tmp_path), optimizer_of(0, 1))

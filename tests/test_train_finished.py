"""Workers that do not share the storage are found before anything is trained."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from raychat.train.finished import check_seen, check_shared


def test_one_worker_shares_with_itself(tmp_path: Path) -> None:
    check_shared(str(tmp_path / "stage"))
    assert not list((tmp_path / "stage").iterdir())
    with pytest.raises(ValueError, match=r"0 of 1 workers do not see .*tokenizer; set --cluster\.storage-path"):
        check_seen(tokenizer := str(tmp_path / "tokenizer"), tokenizer)


def _worker(rank: int, folder: str) -> None:
    """Worker 1 has a disk of its own under the same name."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with pytest.raises(ValueError, match="1 of 2 workers do not see what worker 0 writes to"):
        check_shared(f"{folder}/disk-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_disk_of_its_own_is_found(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)

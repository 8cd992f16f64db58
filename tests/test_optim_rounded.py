"""Workers with each other's matrices in bf16, which is how passes read them, train as those with all in float32."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import toy

from raychat import checkpoint
from raychat.optim import Optimizer, build_optimizer
from raychat.train import start
from raychat.train.run import run_stage
from raychat.train.stage import Stage

DTYPES = {"rounded": torch.bfloat16, "exact": torch.float32}


def _build(model: Any, sent_as: torch.dtype, **options: Any) -> Optimizer:
    assert options["matrices_read_as"] == torch.bfloat16
    return build_optimizer(model, **options | {"matrices_read_as": sent_as})


def _worker(rank: int, folder: str, stages: dict[str, Stage]) -> None:
    torch.set_num_threads(1)
    os.environ["RAYCHAT_DTYPE"] = "bfloat16"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, stage in stages.items():
        start.build_optimizer = partial(_build, sent_as=DTYPES[name])  # type: ignore[assignment]
        run_stage(stage, lambda row: None)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_stage_of_two_workers_ends_in_the_same_checkpoint(tmp_path: Path) -> None:
    stages = {name: toy.token_stage(tmp_path, name) for name in DTYPES}
    mp.spawn(_worker, (str(tmp_path), stages), nprocs=2)
    rounded, exact = (checkpoint.latest(stage.folder) for stage in stages.values())
    assert rounded is not None
    assert exact is not None
    metas = [checkpoint.read_meta(path) for path in (rounded, exact)]
    assert metas[0].files == metas[1].files  # of weights and optimizer, by their sha256
    assert metas[0].metrics["val_bpb"] == metas[1].metrics["val_bpb"]
    assert len(metas[0].files) == 4  # weights, tokenizer, two workers' optimizer state

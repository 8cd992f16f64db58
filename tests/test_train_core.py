"""CORE while a base model is trained: the figure of the evaluation of its checkpoint, from any number of workers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import toy
from tiny import byte_tokenizer

from raychat import checkpoint
from raychat.evals.bundle import CoreTask
from raychat.evals.core import core_evaluation
from raychat.evals.evaluation import LoadedModel
from raychat.log import read_metrics
from raychat.train.run import run_stage
from raychat.train.stage import Stage
from raychat.train.token_feed import CORE_ITEMS_PER_CALL, TokenSource

ITEMS = 40  # of each task: calls for two workers


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[CoreTask, ...]:
    """Two tasks in the counting that the toy stage is trained on, the second with an example before each item."""
    file = tmp_path / "counting.jsonl"
    letters = "abcdefghijklmnopqrstuvw"
    items = [{"query": a, "choices": [chr(ord(a) + 1), b], "gold": 0} for a in letters for b in "xyz"]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return tuple(CoreTask(f"counting-{shots}", "multiple_choice", str(file), shots, "", 0.5) for shots in (0, 1))


def stage_of(root: Path, name: str, tasks: tuple[CoreTask, ...]) -> Stage:
    stage = toy.token_stage(root, name)
    assert isinstance(stage.source, TokenSource)
    return replace(stage, source=replace(stage.source, core=tasks, core_items=ITEMS))


def newest(stage: Stage) -> str:
    path = checkpoint.latest(stage.folder)
    assert path is not None
    return path


def in_training(stage: Stage) -> list[float]:
    return [row["val_core"] for row in read_metrics(stage.folder) if "val_core" in row]


def afterwards(stage: Stage, tasks: tuple[CoreTask, ...]) -> float:
    """CORE of the stage's checkpoint, in calls of the same sizes: others would round otherwise."""
    model, _ = checkpoint.load_model(newest(stage), torch.device("cpu"))
    loaded = LoadedModel(model, byte_tokenizer(), pack=False)
    evaluation = core_evaluation(tasks, ITEMS, items_per_call=CORE_ITEMS_PER_CALL)
    return float(evaluation.finish([call(loaded) for call in evaluation.calls])["core"])


def _worker(rank: int, folder: str, stage: Stage) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    run_stage(stage, lambda row: None)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_evaluation_scores_core_and_changes_nothing(tmp_path: Path, tasks: tuple[CoreTask, ...]) -> None:
    scored, bare = stage_of(tmp_path, "scored", tasks), stage_of(tmp_path, "bare", ())
    summary = run_stage(scored, lambda row: None)
    run_stage(bare, lambda row: None)
    assert checkpoint.read_meta(newest(scored)).files == checkpoint.read_meta(newest(bare)).files
    assert not in_training(bare)
    assert len(in_training(scored)) == toy.STEPS // toy.RUNTIME.eval_every
    assert in_training(scored)[-1] == summary["val_core"] == afterwards(scored, tasks)


@pytest.mark.slow
def test_workers_share_the_calls(tmp_path: Path, tasks: tuple[CoreTask, ...]) -> None:
    stage = stage_of(tmp_path, "two", tasks)
    mp.spawn(_worker, (str(tmp_path), stage), nprocs=2)
    assert in_training(stage)[-1] == afterwards(stage, tasks)

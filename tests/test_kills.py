"""Base, mid, SFT and RL, each killed with SIGKILL five times at random moments, write the bytes of a run that was not.

A moment is a step and a number of file operations after its row: so it lies also within the writing of a checkpoint, a
row or a summary. Every attempt is a process of its own. One process that has imported everything forks them all.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_rl
import toy

from raychat import checkpoint
from raychat.optim import schedule
from raychat.recipe import Runtime
from raychat.rl.feed import RolloutSource
from raychat.tasks import Problem
from raychat.train import run
from raychat.train.finetune import child_recipe
from raychat.train.run import run_stage
from raychat.train.stage import Stage
from raychat.train.token_feed import TokenSource

STEPS, KILLS = 14, 5
MAX_OPERATIONS = 25  # between a step and the kill; after the last step a stage has more
TIMES = {"t", "tok_per_s", "mfu", "rollout_s", "waiting"}  # of a row; all else must be the same
# Of a summary or checkpoint: times, places, and the code, which may be changed meanwhile.
HERE = {"wall_s", "data", "val_rows", "checkpoint", "provenance", "commit"}
RUNTIME = Runtime(device_rows=4, eval_every=5, save_every=3)


def parity(problem: Problem, text: str) -> float:
    """Return the share of an answer's characters with an odd number: it differs between answers."""
    return sum(ord(c) % 2 for c in text) / max(len(text), 1)


def pipeline(root: Path) -> Iterator[Stage]:
    """Yield the stages, each when the one before has ended."""
    base = replace(toy.token_stage(root, "base", runtime=RUNTIME), steps=STEPS)
    yield base
    mid = child_of(base, "mid", partial(schedule.linear_to_zero, peak=1.0), masked=False)
    yield mid
    sft = child_of(mid, "sft", schedule.sft, masked=True)
    yield sft
    task = partial(tiny_rl.ascii_task, reward=parity)
    source = RolloutSource(task=task, params=tiny_rl.PARAMS, questions_per_step=2, samples=4, val_task=task, num_eval=2)
    rl = child_of(sft, "rl", partial(schedule.linear_to_zero, peak=0.5), masked=False)
    yield replace(rl, source=source, fresh=True, matrices_only=True)


def child_of(parent: Stage, name: str, rates: Any, *, masked: bool) -> Stage:
    recipe = child_recipe(checkpoint.latest(parent.folder) or "", parent.storage, seed=3)
    folders = [
        toy.token_folder(f"{parent.storage}/{name}-{split}", masked=masked, seed=seed)
        for split, seed in (("train", 4), ("val", 5))
    ]
    return replace(parent, name=f"test/{name}", recipe=recipe, schedule=rates, source=TokenSource(*folders))


def moments(seed: str) -> list[tuple[int, int]]:
    """Draw the moments of a stage's kills, in order: a resumed stage still has the steps of the later ones to do."""
    draw = random.Random(seed)
    # at the next operation, which most often is the next row, or later, which most often is in a checkpoint
    return sorted((draw.randint(0, STEPS), draw.choice((0, draw.randrange(MAX_OPERATIONS)))) for _ in range(KILLS))


def attempt(stage: Stage, moment: tuple[int, int] | None) -> None:
    """Run a stage; kill this process at the moment."""
    step, operations = moment or (STEPS + 1, 0)
    done = -1 if step else 0  # file operations since the step; -1 = it is still to come

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if done >= 0 and arguments and isinstance(arguments[0], str) and arguments[0].startswith(stage.folder):
            done += 1
            if done > operations:
                os.kill(os.getpid(), signal.SIGKILL)

    def report(row: dict[str, Any]) -> None:
        nonlocal done
        done = max(done, 0) if row["step"] >= step else done

    sys.addaudithook(count)
    run_stage(stage, report)


def in_a_process(stage: Stage, moment: tuple[int, int] | None) -> int:
    """Fork an attempt; return the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        attempt(stage, moment)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status <= 0, f"{stage.name} failed"
    return -status


def run_all(root: Path) -> None:
    """Run the pipeline twice, undisturbed below `whole` and with kills below `cut`, and print the signals by stage."""
    run.LOG_EVERY_S = 0.0
    for stage in pipeline(root / "whole"):
        assert in_a_process(stage, None) == 0
    for stage in pipeline(root / "cut"):
        signals = [in_a_process(stage, moment) for moment in moments(stage.name)]
        assert in_a_process(stage, None) == 0
        print(json.dumps({"stage": stage.name, "signals": signals}), flush=True)


def comparable(folder: Path) -> dict[str, Any]:
    """Return all files that a stage has completed, by name: bytes, and JSON without what is of one run alone."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = {name: content for name, content in files.items() if ".tmp-" not in name and not name.startswith("code-")}
    found: dict[str, Any] = dict(files)
    for name, content in files.items():
        if name.endswith("metrics.jsonl"):
            rows = [json.loads(line) for line in content.splitlines()]
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        elif name.endswith(".json") and "tokenizer" not in name:
            values = json.loads(content)
            found[name] = {key: value for key, value in values.items() if key not in HERE}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stages_killed_at_random_moments_write_the_same_bytes(tmp_path: Path) -> None:
    # Sums on a GPU have no fixed order, and OpenMP's threads do not survive a fork.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    killed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"stage"')]
    names = ("base", "mid", "sft", "rl")
    assert killed == [{"stage": f"test/{name}", "signals": [signal.SIGKILL] * KILLS} for name in names]
    for name in names:
        whole, cut = (comparable(tmp_path / root / "runs" / "test" / name) for root in ("whole", "cut"))
        assert f"step_{STEPS:06d}/model.safetensors" in whole
        for file, expected in whole.items():
            assert cut.get(file) == expected, (name, file)
    rewards = [row["signal"] for row in comparable(tmp_path / "cut/runs/test/rl")["metrics.jsonl"] if "signal" in row]
    assert max(rewards) > 0  # so RL has changed the weights


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))

"""The reinforcement job in this process: from a checkpoint of a run and a folder of word problems to a summary."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_rl
import torch
import toy

from jobs import rl_train
from raychat import checkpoint, tasks
from raychat.cluster import Cluster
from raychat.data.batches import next_token
from raychat.data.shards import TokenRows
from raychat.evals.bpb import bits_per_byte
from raychat.log import read_metrics
from raychat.tasks import Problem, Task


def write_problems(folder: Path) -> None:
    for split in ("train", "test"):
        rows = [{"question": f"{i}+1?", "answer": f"<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(5)]
        path = folder / "gsm8k" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def args(raychat_home: Path, tmp_path: Path) -> rl_train.Args:
    tiny_rl.parent(raychat_home, run="r")
    write_problems(tmp_path)
    return rl_train.Args(
        run="r",
        task_data=str(tmp_path),
        questions_per_step=2,
        samples=3,
        max_new_tokens=5,
        num_eval=2,
        cluster=Cluster(workers=0),
    )


def test_job_reinforces_once(args: rl_train.Args, raychat_home: Path) -> None:
    summary = rl_train.run(args)
    assert summary["steps"] == 2  # one pass over five problems, two a step
    assert {"reward_first", "reward_last", "val_reward", "tokens", "samples", "wall_s"} <= summary.keys()
    assert summary["reward_first"] == 0.0  # noise is no answer
    assert 0 < summary["tokens"] <= 2 * 2 * 3 * 5
    folder = str(raychat_home / "runs" / "r" / "rl")
    assert [row["step"] for row in read_metrics(folder) if "reward" in row] == [1, 2]
    meta = checkpoint.read_meta(summary["checkpoint"])
    assert meta.recipe.parent == "runs/r/sft/step_000000"
    assert meta.recipe.lr_scale == 1.0
    assert meta.recipe.sampling == {
        "questions_per_step": 2,
        "samples": 3,
        "max_new_tokens": 5,
        "temperature": 1.0,
        "top_k": 50,
    }
    assert rl_train.run(args) == json.loads((Path(folder) / "summary.json").read_text())


def test_rows_of_a_micro_batch_follow_the_models_dtype(args: rl_train.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    """In reinforcement it is not the one that is asked for in training."""
    monkeypatch.setenv("RAYCHAT_DTYPE", "bfloat16")
    asked = toy.dtypes_of_rows(monkeypatch, "raychat.rl.feed")
    rl_train.run(args)
    assert asked == [torch.float32]


def test_learner_and_sampler_multiply_alike(args: rl_train.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner's products are not rounded on a CPU with AMX, where the sampler's are not."""
    monkeypatch.setenv("RAYCHAT_DTYPE", "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    rounding: list[object] = []
    monkeypatch.setattr("raychat.train.start.use_bf16", rounding.append)
    rl_train.run(args)
    assert not rounding


def test_validation_rows_of_the_parent_are_validated_on(args: rl_train.Args, raychat_home: Path) -> None:
    rows = toy.token_folder(str(raychat_home / "tokens" / "val"), num_rows=3, num_blocks=1, masked=True)
    sft = {"val_rows": rows, "unigram_bpb": 7.5}
    (raychat_home / "runs" / "r" / "sft" / "summary.json").write_text(json.dumps(sft))
    summary = rl_train.run(args)
    assert summary["unigram_bpb"] == 7.5
    model, _ = checkpoint.load_model(summary["checkpoint"], torch.device("cpu"))
    token_bytes = torch.from_numpy(checkpoint.load_tokenizer(summary["checkpoint"]).token_bytes())
    batch = next_token(*TokenRows(rows).rows([0, 1, 2]), 1.0, torch.device("cpu"))
    assert summary["val_bpb"] == pytest.approx(bits_per_byte(model.eval().nll, [batch], token_bytes), rel=1e-5)
    assert len(summary["outcomes"]["val_bpb"]["bytes"]) == 3
    assert summary["interval"].keys() >= {"val_bpb", "val_reward"}


def test_other_settings_are_refused(args: rl_train.Args) -> None:
    rl_train.run(args)
    rl_train.run(replace(args, rollout_workers=2))  # makes no difference to the result
    with pytest.raises(ValueError, match="samples: there 3, now 4"):
        rl_train.run(replace(args, samples=4))


def test_a_new_task_needs_problems_and_a_reward_only(args: rl_train.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    def vowels(root: str, split: str) -> Task:
        problems = [Problem([{"role": "user", "content": "a?"}, {"role": "assistant", "content": "a"}])]
        return Task("vowels", problems, 0.0, lambda problem, text: float(any(c in "aeiou" for c in text)))

    monkeypatch.setitem(tasks.TASKS, "vowels", vowels)
    summary = rl_train.run(replace(args, tasks=("vowels",), steps=1))
    assert 0 <= summary["reward_first"] <= 1


def long_answers(problem: Problem, text: str) -> float:
    return len(text) / 10


def test_own_reward_another_algorithm_and_rollouts_ahead(args: rl_train.Args) -> None:
    own = replace(args, reward=f"{__name__}:long_answers", algorithm="dapo", kl=0.01, ahead=1)
    summary = rl_train.run(own)
    assert summary["reward_first"] > 0
    sampling = checkpoint.read_meta(summary["checkpoint"]).recipe.sampling
    assert sampling is not None
    assert {key: sampling[key] for key in ("reward", "algorithm", "kl", "ahead")} == {
        "reward": f"{__name__}:long_answers",
        "algorithm": "dapo",
        "kl": 0.01,
        "ahead": 1,
    }
    with pytest.raises(ValueError, match="ahead: there 1, now None"):
        rl_train.run(replace(own, ahead=0))
    with pytest.raises(ValueError, match="cannot be imported"):
        rl_train.run(replace(own, reward="absent:reward"))


def test_run_without_a_chat_model_is_an_error(args: rl_train.Args) -> None:
    with pytest.raises(ValueError, match="no checkpoint of sft or mid"):
        rl_train.run(replace(args, run="absent"))

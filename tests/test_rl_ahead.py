"""The stage with rollouts ahead of the learner, replaced questions, a KL term: in this process, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_rl import PARAMS, ascii_reward, ascii_task, interrupting, parent, stage_of
from torch import Tensor

from raychat import checkpoint, paths
from raychat.evals.generate import Group, Question
from raychat.log import read_metrics
from raychat.recipe import Runtime
from raychat.rl.algorithms import Algorithm, find_algorithm
from raychat.rl.queue import Answers
from raychat.rl.sampler import Sampler
from raychat.tasks import Problem
from raychat.train.run import run_stage
from raychat.train.stage import Stage

PER_STEP = 3  # questions of `stage_of`


def run(work: Stage) -> dict[str, object]:
    torch.set_num_threads(1)
    return run_stage(work, lambda row: None)


def rows_of(work: Stage) -> list[dict[str, object]]:
    return [row for row in read_metrics(work.folder) if "reward" in row]


def places_of(work: Stage) -> list[int]:
    usual = [list(range(PER_STEP * i, PER_STEP * (i + 1))) for i in range(work.steps)]
    return [
        place for row, expected in zip(rows_of(work), usual, strict=True) for place in row.get("questions", expected)
    ]


def test_reward_rises_with_stale_rollouts_and_every_question_is_used_once(tmp_path: Path) -> None:
    parent(tmp_path)
    work = stage_of(tmp_path, steps=24, samples=8, peak=1.0, ahead=1)
    summary = run(work)
    rows = rows_of(work)
    assert summary["reward_first"] < 0.75
    assert summary["reward_last"] > 0.85
    assert sorted(places_of(work)) == list(range(24 * PER_STEP))
    assert max(row["staleness_max"] for row in rows) in (1, 2)
    assert rows[0]["staleness"] == 0
    # of the first step's tokens, which the first weights have sampled: one model in two shapes of batch, fp32
    assert rows[0]["mismatch"] < 1e-4
    assert any("ratio" in row for row in rows)
    assert all(0.5 < row.get("ratio", 1) < 2 for row in rows)
    assert {"pass_at_k", "entropy", "waiting", "tok_per_s"} <= rows[0].keys()
    assert rows[0]["waiting"] == 1


def test_the_factor_of_the_algorithm_weighs_stale_rollouts_and_no_others(tmp_path: Path) -> None:
    parent(tmp_path)
    nothing = Algorithm(factor=lambda ratio, advantage: np.zeros_like(ratio))
    ahead, in_step = (stage_of(tmp_path, f"by-{n}", steps=2, ahead=n, algorithm=nothing) for n in (1, 0))
    for work in (ahead, in_step):
        run(work)
    assert [row["loss"] for row in rows_of(ahead)] == [0.0, 0.0]
    assert all(row["loss"] != 0 for row in rows_of(in_step))


def test_killed_stage_asks_every_question_once(tmp_path: Path) -> None:
    parent(tmp_path)
    work = replace(stage_of(tmp_path, steps=6, ahead=2), runtime=Runtime(save_every=2))
    with pytest.raises(KeyboardInterrupt):
        run(replace(work, source=replace(work.source, task=partial(ascii_task, reward=interrupting(12 * 4 + 5)))))
    assert checkpoint.latest(work.folder)
    run(work)
    assert sorted(places_of(work)) == list(range(6 * PER_STEP))


def sometimes_constant(problem: Problem, text: str) -> float:
    """Reward all answers to every third question alike."""
    return 0.5 if len(problem.messages[0]["content"]) % 3 == 0 else ascii_reward(problem, text)


def test_questions_without_signal_are_replaced(tmp_path: Path) -> None:
    parent(tmp_path)
    work = stage_of(
        tmp_path,
        steps=2,
        samples=6,
        algorithm=find_algorithm("dapo"),
        task=partial(ascii_task, reward=sometimes_constant),
    )
    run(work)
    rows = rows_of(work)
    # two of six problems are constant, and all six are asked once in six places
    assert sorted(places_of(work)) == list(range(len(places_of(work))))
    assert 2 <= len(places_of(work)) - 2 * PER_STEP <= 4
    assert all(row["signal"] < 1 for row in rows if "questions" in row and len(row["questions"]) > PER_STEP)


def test_kl_term_holds_the_policy_near_its_parent(tmp_path: Path) -> None:
    parent(tmp_path)
    plain = replace(stage_of(tmp_path, "plain", steps=6, peak=1.0), runtime=Runtime(eval_every=1))
    held = replace(plain, name="tiny/held", source=replace(plain.source, algorithm=find_algorithm("reinforce", kl=1.0)))
    for work in (plain, held):
        run(work)
    far, near = ([row["kl"] for row in rows_of(work)] for work in (plain, held))
    assert far[0] == near[0] == pytest.approx(0, abs=1e-9)
    assert 0 < near[-1] < far[-1]
    assert all(row["mismatch"] < 1e-4 for row in rows_of(plain))


def test_step_that_only_has_a_kl_term_teaches(tmp_path: Path) -> None:
    parent(tmp_path)
    constant = partial(ascii_task, reward=lambda problem, text: 0.5)
    work = stage_of(tmp_path, steps=2, task=constant, algorithm=find_algorithm("reinforce", kl=1.0))
    run(work)
    assert [row["lr"] > 0 for row in rows_of(work)] == [True, True]


def test_looking_at_divergences_changes_no_weight(tmp_path: Path) -> None:
    parent(tmp_path)
    blind, looked = (
        replace(stage_of(tmp_path, name), runtime=Runtime(eval_every=every))
        for name, every in (("blind", 0), ("looked", 1))
    )
    for work in (blind, looked):
        run(work)
    ours, theirs = (
        load_file(paths.join(str(checkpoint.latest(work.folder)), "model.safetensors")) for work in (blind, looked)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class OneActor:
    """A pool whose only actor is in this process, and that notes the learner's threads."""

    cores = 1

    def __init__(self, sampler: Sampler) -> None:
        self._sampler, self.threads = sampler, set[int]()

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        self.threads.add(torch.get_num_threads())
        self._sampler.load_weights(weights)
        return [self._sampler.rollout(questions) for questions in calls]

    def stream(self) -> Answers:
        self.threads.add(torch.get_num_threads())
        return self._sampler.stream()


@pytest.mark.parametrize(("ahead", "threads"), [(0, 3), (1, 2)])
def test_learner_leaves_its_cores_to_actors_that_run_ahead(tmp_path: Path, ahead: int, threads: int) -> None:
    path = parent(tmp_path)
    pool = OneActor(Sampler.load(path, ascii_reward, PARAMS, 4))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run_stage(stage_of(tmp_path, steps=2, ahead=ahead, pool=pool), lambda row: None)
        assert pool.threads == {threads}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_samples_of_every_step_are_written(tmp_path: Path) -> None:
    parent(tmp_path)
    work = stage_of(tmp_path, steps=2)
    run(work)
    texts = [paths.read_text(paths.join(work.folder, "rollouts", f"step_{step:06d}.md")) for step in (1, 2)]
    for step, text in enumerate(texts, start=1):
        assert text.startswith(f"# Step {step}\n")
        assert text.count("## Rewards") == 2
        assert text.count("\nReward ") == 4
    assert texts[0] != texts[1]

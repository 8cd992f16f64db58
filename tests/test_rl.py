"""Reinforcement: against REINFORCE written out, masks, a reward that rises, any number of workers, resume."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import tiny_rl
import torch
from safetensors.torch import load_file
from tiny_rl import PARAMS, ascii_reward, ascii_task, assert_same, interrupting, parent, stage_of

from raychat import checkpoint, paths
from raychat.data.batches import Batch
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals.generate import Question, Rollout
from raychat.log import read_metrics
from raychat.recipe import Runtime
from raychat.rl.algorithms import REINFORCE
from raychat.rl.sampler import Sampler
from raychat.rl.step import Padding, Weighed, question_at, to_batches, weigh, weights_of
from raychat.tasks import Problem
from raychat.train.loop import accumulate
from raychat.train.run import run_stage
from raychat.train.stage import Stage

CPU = torch.device("cpu")
REPO = Path(__file__).parent.parent


def run(work: Stage) -> dict[str, object]:
    torch.set_num_threads(1)
    return run_stage(work, lambda row: None)


def final_weights(work: Stage) -> dict[str, torch.Tensor]:
    last = checkpoint.latest(work.folder)
    assert str(last).endswith(f"step_{work.steps:06d}")
    return load_file(paths.join(str(last), "model.safetensors"))


def sampler(reward: Callable[[Problem, str], float] = ascii_reward, params: SamplingParams = PARAMS) -> Sampler:
    return Sampler(Engine(tiny_rl.model(), tiny.byte_tokenizer(), max_sequences=8), reward, params)


def rollout(completion: list[int], sampled: list[bool], reward: float, prompt_length: int = 3) -> Rollout:
    return Rollout(list(range(1, prompt_length + 1)), completion, sampled, [0.0] * len(completion), "", reward)


# Ragged lengths, a tool's tokens in the middle, a group whose rewards are all equal.
GROUPS = [
    [rollout([5, 6, 7], [True] * 3, 1.0), rollout([9, 3], [True] * 2, 0.0), rollout([4], [True], 0.25)],
    [
        rollout([8, 100, 101, 2, 3], [True, False, False, True, True], 1.0, prompt_length=5),
        rollout([7, 7, 7, 7, 7, 7, 7, 7, 7], [True] * 9, 0.5, prompt_length=5),
    ],
    [rollout([1, 2], [True] * 2, 1.0, prompt_length=2), rollout([3, 4, 5], [True] * 3, 1.0, prompt_length=2)],
]
NUM_SAMPLED = 3 + 2 + 1 + 3 + 9 + 2 + 3


def batches(weighed: list[Weighed], device_tokens: int = 30) -> list[Batch]:
    rollouts = [weighed.rollout for weighed in weighed]
    return list(to_batches(rollouts, weights_of(weighed, REINFORCE), Padding(0, device_tokens, 4, CPU)))


def reinforce(groups: list[list[Rollout]]) -> list[Weighed]:
    return weigh(groups, REINFORCE, max_new_tokens=16)


def questions(step: int, *, number: int, samples: int = 4, seed: int = 0) -> list[Question]:
    problems = ascii_task().problems
    return [question_at(problems, step * number + i, samples=samples, seed=seed) for i in range(number)]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_is_reinforce_with_group_baseline() -> None:
    """Against the policy gradient written out: one answer at a time, unpadded, token by token."""
    model = tiny_rl.model()
    expected_reward = torch.zeros(())
    for group in GROUPS:
        baseline = sum(r.reward for r in group) / len(group)
        for r in group:
            for i, (token, sampled) in enumerate(zip(r.completion, r.sampled, strict=True)):
                if sampled:
                    logits = model(torch.tensor([r.prompt + r.completion[:i]]))[0, -1]
                    expected_reward = expected_reward + (r.reward - baseline) * torch.log_softmax(logits, -1)[token]
    (-expected_reward / NUM_SAMPLED).backward()
    expected = gradients(model)
    model.zero_grad()

    made = batches(reinforce(GROUPS))
    assert len(made) > 1
    loss = accumulate(model.nll, made, model.device)
    torch.testing.assert_close(loss, -expected_reward.detach() / NUM_SAMPLED)
    # fp32 sums in another order: absolute errors up to a few 1e-7 of the largest entry
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-7)


def test_tool_tokens_and_prompt_carry_no_loss() -> None:
    r = GROUPS[1][0]
    (batch,) = batches([Weighed(r, 1.0, 2.0)])
    inputs = r.prompt + r.completion[:-1]
    assert batch.inputs[0].tolist() == inputs + [0] * (12 - len(inputs))
    assert batch.targets[0].tolist() == [-1] * 4 + [8, -1, -1, 2, 3] + [-1] * 3
    assert batch.weights[0].tolist() == [0.0] * 4 + [0.5, 0.0, 0.0, 0.5, 0.5] + [0.0] * 3


def test_micro_batches_hold_every_rollout_once_within_the_budget() -> None:
    weighed = reinforce(GROUPS)
    made = batches(weighed, device_tokens=24)
    assert all(b.inputs.shape == b.targets.shape == b.weights.shape for b in made)
    assert all(b.inputs.numel() <= 24 and b.inputs.size(1) % 4 == 0 for b in made)
    assert sum(b.inputs.size(0) for b in made) == len(weighed)
    total = sum(advantage / divisor * sum(r.sampled) for r, advantage, divisor in weighed)
    assert sum(float(b.weights.sum()) for b in made) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3])
def test_equal_rewards_give_no_gradient(reward: float) -> None:
    groups = [[r._replace(reward=reward) for r in group] for group in GROUPS]
    model = tiny_rl.model()
    loss = accumulate(model.nll, batches(reinforce(groups)), model.device)
    assert loss == 0
    assert not gradients(model)


def test_questions_depend_on_the_step_only_and_every_epoch_asks_all() -> None:
    problems = ascii_task().problems
    ask = partial(questions, number=4, samples=2, seed=3)
    steps = [ask(step) for step in range(6)]
    assert [ask(step) for step in range(6)] == steps
    asked = [question.problem.messages[0]["content"] for step in steps for question in step]
    for epoch in range(4):
        assert sorted(asked[6 * epoch : 6 * epoch + 6]) == sorted(p.messages[0]["content"] for p in problems)
    assert asked[:6] != asked[6:12]
    seeds = [seed for step in steps for question in step for seed in question.seeds]
    assert len(set(seeds)) == len(seeds) == 48


def test_rollouts_depend_on_question_and_weights_only() -> None:
    asked = questions(0, number=3)
    first = sampler()
    groups = [first.rollout([question])[0] for question in asked]
    other = sampler()
    assert_same([other.rollout([question]) for question in reversed(asked)], [[group] for group in groups[::-1]])
    assert len({tuple(r.completion) for group in groups for r in group}) == 12
    for question, group in zip(asked, groups, strict=True):
        for r in group:
            text = other.engine.tokenizer.decode(r.completion)
            assert r.sampled == [True] * len(r.completion)
            if max(r.completion) < 256:  # a special token is no text for the reward
                assert r.reward == ascii_reward(question.problem, text)


def test_new_weights_change_the_rollouts() -> None:
    asked = questions(0, number=1)
    one = sampler()
    before = one.rollout(asked)
    one.load_weights({name: tensor + 0.1 for name, tensor in tiny_rl.model().state_dict().items()})
    assert one.rollout(asked) != before
    one.load_weights(tiny_rl.model().state_dict())
    assert one.rollout(asked) == before


def test_reward_rises(tmp_path: Path) -> None:
    """An untrained model writes ASCII about half of the time; after thirty steps almost always."""
    parent(tmp_path)
    work = stage_of(
        tmp_path,
        steps=30,
        samples=8,
        peak=1.0,
        val_task=ascii_task,
        num_eval=6,
    )
    summary = run(work)
    assert summary["reward_first"] < 0.75
    assert summary["reward_last"] > 0.9
    assert summary["val_reward"] > 0.9
    assert len(summary["outcomes"]["val_reward"]) == 6
    assert sum(summary["outcomes"]["val_reward"]) / 6 == summary["val_reward"]
    for name in ("reward_first", "reward_last", "val_reward"):
        low, high = summary["interval"][name]
        assert low <= summary[name] <= high
    rows = [row for row in read_metrics(work.folder) if "reward" in row]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert summary["reward_last"] == pytest.approx(sum(row["reward"] for row in rows[-6:]) / 6)
    assert 0 < summary["tokens"] <= 30 * 3 * 8 * 6
    assert [set(sample) for sample in summary["samples"]] == [{"question", "answer", "reward"}] * 3


def test_resumed_stage_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Bit by bit, stopped between two checkpoints while rewards are given."""
    parent(tmp_path)
    whole = replace(stage_of(tmp_path, "whole", steps=6), runtime=Runtime(save_every=2))
    expected = run(whole)

    killed = replace(whole, name="tiny/killed")
    with pytest.raises(KeyboardInterrupt):
        run(replace(killed, source=replace(killed.source, task=partial(ascii_task, reward=interrupting(12 * 4 + 5)))))
    assert str(checkpoint.latest(killed.folder)).endswith("step_000004")
    got = run(killed)

    ours, theirs = final_weights(whole), final_weights(killed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in ("reward_first", "reward_last", "tokens", "samples"):
        assert got[key] == expected[key]


def test_any_number_of_workers_takes_the_same_steps(tmp_path: Path) -> None:
    """Two workers in a gloo group, three calls a step: one has more rollouts to make than the other."""
    parent(tmp_path)
    one = stage_of(tmp_path, "one", steps=3)
    summary = run(one)
    two = replace(one, name="tiny/two")
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, "STORE": str(tmp_path / "store"), "RANK": str(rank), "PYTHONPATH": str(REPO)},
        )
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    rewards = [row["reward"] for row in read_metrics(two.folder)]
    assert rewards == [row["reward"] for row in read_metrics(one.folder)]
    assert json.loads(paths.read_text(paths.join(two.folder, "summary.json")))["reward_last"] == summary["reward_last"]
    # Muon's orthogonalisation amplifies the rounding of gradients summed in another order
    torch.testing.assert_close(final_weights(two), final_weights(one), rtol=1e-3, atol=1e-4)


def test_step_with_equal_rewards_leaves_the_weights_although_there_is_momentum(tmp_path: Path) -> None:
    parent(tmp_path)
    work = stage_of(tmp_path, questions_per_step=1, task=partial(ascii_task, reward=ascii_or_constant))
    states = []
    for steps in range(1, 7):
        run(replace(work, steps=steps))
        states.append(final_weights(replace(work, steps=steps)))
    rows = read_metrics(work.folder)
    signals = [row["signal"] > 0 for row in rows]
    assert (True, False) in pairwise(signals)  # a step without signal after one that left momentum behind
    assert [row["lr"] > 0 for row in rows] == signals
    for signal, (before, after) in zip(signals[1:], pairwise(states), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in after) != signal


def ascii_or_constant(problem: Problem, text: str) -> float:
    """Reward all answers to every other question alike."""
    return 0.5 if len(problem.messages[0]["content"]) % 2 else ascii_reward(problem, text)


def test_only_matrices_learn(tmp_path: Path) -> None:
    before = load_file(paths.join(parent(tmp_path), "model.safetensors"))
    work = stage_of(tmp_path)
    run(work)
    after = final_weights(work)
    learnt = {name for name in after if not torch.equal(before[name], after[name])}
    assert learnt == {name for name, tensor in after.items() if tensor.dim() == 2 and min(tensor.shape) > 1}
    assert learnt < after.keys()


def test_no_problems_is_an_error(tmp_path: Path) -> None:
    parent(tmp_path)
    with pytest.raises(ValueError, match="no problems"):
        run(stage_of(tmp_path, task=partial(ascii_task, 0)))


if __name__ == "__main__":  # one of the workers of test_any_number_of_workers_takes_the_same_steps
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.environ['STORE']}", rank=int(os.environ["RANK"]), world_size=2
    )
    run(stage_of(folder, "two", steps=3))
    torch.distributed.destroy_process_group()

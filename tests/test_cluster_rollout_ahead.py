"""Rollouts ahead of the learner on Ray: actors and the learner die, and no question is lost or used twice."""

import os
import random
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_rl
import torch
from ray import cloudpickle
from tiny_rl import PARAMS, ascii_reward, ascii_task, once, parent, stage_of

from raychat.cluster import Cluster
from raychat.cluster.launch import launch
from raychat.cluster.rollout import RolloutPool, _published, _tensors, rollout_pool
from raychat.evals.generate import Group
from raychat.log import read_metrics
from raychat.optim.schedule import Schedule, linear_to_zero
from raychat.recipe import Runtime
from raychat.rl.feed import RolloutSource
from raychat.rl.queue import Answers
from raychat.rl.sampler import Sampler
from raychat.rl.step import question_at
from raychat.tasks import Problem

cloudpickle.register_pickle_by_value(tiny_rl)  # Ray's workers do not find the modules of this folder

WEIGHTS = tiny_rl.model().state_dict()
OTHER_WEIGHTS = {name: tensor * 1.1 for name, tensor in WEIGHTS.items()}
QUESTIONS = {place: question_at(ascii_task().problems, place, samples=4, seed=0) for place in range(8)}


def drain(answers: Answers, number: int) -> dict[int, Group]:
    found: dict[int, Group] = {}
    while len(found) < number:
        groups = answers.finished()
        assert not found.keys() & groups.keys()
        found |= groups
    return found


@pytest.mark.ray
def test_actors_answer_with_the_published_weights_also_after_deaths(tmp_path: Path, ray_cluster: None) -> None:
    path = parent(tmp_path)

    def deadly(problem: Problem, text: str) -> float:
        name = problem.messages[0]["content"]
        if name in ("ab", "abcd") and once(tmp_path / name):  # in the middle of other answers
            os.kill(os.getpid(), signal.SIGKILL)
        return ascii_reward(problem, text)

    here = Sampler.load(path, ascii_reward, PARAMS, 4)
    with closing(RolloutPool(partial(Sampler.load, path, deadly, PARAMS, 4), 2)) as pool:
        stream = cloudpickle.loads(cloudpickle.dumps(pool)).stream()  # as in a train worker
        for version, weights in enumerate((WEIGHTS, OTHER_WEIGHTS)):
            stream.publish(version, weights)
            stream.ask(QUESTIONS)
            found = drain(stream, len(QUESTIONS))
            here.load_weights(weights)
            for place, question in QUESTIONS.items():
                (expected,) = here.rollout([question])
                for ours, theirs in zip(found[place], expected, strict=True):
                    assert (ours.completion, ours.reward) == (theirs.completion, theirs.reward)
                    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
                    assert set(ours.versions) == {version}
        stream.close()
    assert (tmp_path / "ab").exists()
    assert (tmp_path / "abcd").exists()


@pytest.mark.ray
def test_another_stream_drops_what_the_one_before_had_asked(tmp_path: Path, ray_cluster: None) -> None:
    """As after the death of the learner: the actors still have its questions."""
    path = parent(tmp_path)
    with closing(RolloutPool(partial(Sampler.load, path, ascii_reward, PARAMS, 4), 1)) as pool:
        first = pool.stream()
        first.publish(0, WEIGHTS)
        first.ask(QUESTIONS)
        first.finished()
        first.close()
        second = pool.stream()
        second.publish(3, OTHER_WEIGHTS)
        second.ask({100: QUESTIONS[0]})
        found = drain(second, 1)
        assert found.keys() == {100}
        assert all(set(rollout.versions) == {3} for rollout in found[100])


@pytest.mark.ray
def test_error_in_a_reward_reaches_the_learner(tmp_path: Path, ray_cluster: None) -> None:
    def fail(problem: Problem, text: str) -> float:
        raise ArithmeticError("no such number")

    path = parent(tmp_path)
    with closing(RolloutPool(partial(Sampler.load, path, fail, PARAMS, 4), 1)) as pool:
        stream = pool.stream()
        stream.publish(0, WEIGHTS)
        stream.ask(QUESTIONS)
        with pytest.raises(ArithmeticError, match="no such number"):
            stream.finished()


@pytest.mark.ray
def test_weights_travel_as_bf16_where_activations_are(ray_cluster: None) -> None:
    import ray

    half = {name: t.to(torch.bfloat16) if name.startswith("wte") else t for name, t in WEIGHTS.items()}
    for weights in (WEIGHTS, half):
        arrays = ray.get(_published(weights, 0).box[0])
        got = _tensors(arrays)
        bf16 = weights is half
        for name, tensor in weights.items():
            expected = tensor.to(torch.bfloat16) if bf16 and tensor.dim() == 2 else tensor
            assert got[name].dtype == expected.dtype
            assert torch.equal(got[name], expected)


@pytest.mark.ray
@pytest.mark.long
def test_deaths_of_actors_and_of_the_learner_lose_no_question_and_use_none_twice(
    tmp_path: Path, ray_cluster: None
) -> None:
    path = parent(tmp_path)
    work = replace(stage_of(tmp_path, "ahead", steps=8), runtime=Runtime(save_every=2))
    source = work.source
    assert isinstance(source, RolloutSource)
    seed = random.randrange(1000)
    draw = random.Random(seed)
    deadly_steps = draw.sample(range(8), 2)
    deadly_problems = draw.sample([problem.messages[0]["content"] for problem in ascii_task().problems], 2)
    print(f"seed {seed}: the learner dies in steps {deadly_steps}, actors in answers to {deadly_problems}")

    def deadly_reward(problem: Problem, text: str) -> float:
        if problem.messages[0]["content"] in deadly_problems and once(tmp_path / f"actor-{len(text) % 2}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return ascii_reward(problem, text)

    def deadly_schedule(steps: int) -> Schedule:
        usual = linear_to_zero(steps, peak=0.5)

        def lr(step: int) -> float:
            if step in deadly_steps and once(tmp_path / f"learner-{step}"):
                os.kill(os.getpid(), signal.SIGKILL)
            return usual.lr(step)

        return usual._replace(lr=lr)

    cluster = Cluster(workers=2, gpus_per_worker=0)
    build = partial(Sampler.load, path, deadly_reward, PARAMS, source.max_sequences)
    with rollout_pool(build, cluster, 2) as pool:
        work = replace(work, schedule=deadly_schedule, source=replace(source, pool=pool, ahead=1))
        launch(work, cluster)

    assert {marker.name for marker in tmp_path.glob("learner-*")} == {f"learner-{step}" for step in deadly_steps}
    assert list(tmp_path.glob("actor-*"))
    rows = [row for row in read_metrics(work.folder) if "reward" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    usual = [list(range(3 * i, 3 * i + 3)) for i in range(8)]
    places = [row.get("questions", expected) for row, expected in zip(rows, usual, strict=True)]
    assert sorted(place for step in places for place in step) == list(range(24))
    assert max(row["staleness_max"] for row in rows) <= 2

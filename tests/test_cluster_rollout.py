"""Rollouts on actors: the same for any number of them, also when they die; and the whole stage on Ray."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_rl
import torch
from ray import cloudpickle
from safetensors.torch import load_file
from tiny_rl import PARAMS, ascii_reward, ascii_task, assert_same, parent, stage_of

from raychat import checkpoint, paths
from raychat.cluster import Cluster
from raychat.cluster.launch import launch
from raychat.cluster.rollout import RolloutPool, num_actors, rollout_pool
from raychat.evals.generate import Group, Question
from raychat.log import read_metrics
from raychat.optim.schedule import Schedule, linear_to_zero
from raychat.recipe import Runtime
from raychat.rl.feed import RolloutSource
from raychat.rl.sampler import Sampler
from raychat.rl.step import question_at
from raychat.tasks import Problem
from raychat.train.run import run_stage

cloudpickle.register_pickle_by_value(tiny_rl)  # Ray's workers do not find the modules of this folder

CLUSTER = Cluster(workers=2, gpus_per_worker=0)
WEIGHTS = tiny_rl.model().state_dict()
OTHER_WEIGHTS = {name: tensor * 1.1 for name, tensor in WEIGHTS.items()}


def calls() -> list[list[Question]]:
    """All six problems, one a call."""
    return [[question_at(ascii_task().problems, place, samples=4, seed=0)] for place in range(6)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the actors: the same sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected(path: str, weights: dict[str, torch.Tensor]) -> list[list[Group]]:
    here = Sampler.load(path, ascii_reward, PARAMS, 4)
    here.load_weights(weights)
    return [here.rollout(call) for call in calls()]


@pytest.mark.ray
def test_rollouts_of_actors_are_those_of_one_sampler(tmp_path: Path, ray_cluster: None) -> None:
    path = parent(tmp_path)
    with rollout_pool(partial(Sampler.load, path, ascii_reward, PARAMS, 4), CLUSTER, 3) as pool:
        assert pool is not None
        assert_same(pool.rollouts(calls(), WEIGHTS), expected(path, WEIGHTS))
        assert_same(pool.rollouts(calls(), OTHER_WEIGHTS), expected(path, OTHER_WEIGHTS))
        assert_same(pool.rollouts(calls(), WEIGHTS), expected(path, WEIGHTS))


@pytest.mark.ray
def test_dead_actors_are_replaced_and_their_calls_done_again(
    tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = parent(tmp_path)

    def deadly(problem: Problem, text: str) -> float:
        name = problem.messages[0]["content"]
        if name in ("ab", "abcd"):  # the actor that gets here first dies in the middle of a call
            try:
                os.close(os.open(tmp_path / name, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return ascii_reward(problem, text)

    with rollout_pool(partial(Sampler.load, path, deadly, PARAMS, 4), CLUSTER, 2) as pool:
        assert pool is not None
        # used after pickling, as by a train worker; the replacements must get the current weights as well
        there = cloudpickle.loads(cloudpickle.dumps(pool))
        with closing(there):
            assert_same(there.rollouts(calls(), OTHER_WEIGHTS), expected(path, OTHER_WEIGHTS))
            assert_same(there.rollouts(calls(), WEIGHTS), expected(path, WEIGHTS))
    assert (tmp_path / "ab").exists()
    assert (tmp_path / "abcd").exists()
    assert capfd.readouterr().out.count("an actor died and is replaced") == 2


@pytest.mark.ray
def test_error_in_a_reward_is_raised_with_its_cause(tmp_path: Path, ray_cluster: None) -> None:
    def fail(problem: Problem, text: str) -> float:
        raise ArithmeticError("no such number")

    path = parent(tmp_path)
    build = partial(Sampler.load, path, fail, PARAMS, 4)
    with closing(RolloutPool(build, 1)) as pool, pytest.raises(ArithmeticError, match="no such number"):
        pool.rollouts(calls(), WEIGHTS)


@pytest.mark.ray
def test_actors_without_end_of_dying_are_an_error(tmp_path: Path, ray_cluster: None) -> None:
    absent = partial(Sampler.load, str(tmp_path / "absent"), ascii_reward, PARAMS, 4)
    with closing(RolloutPool(absent, 1, max_failures=0)) as pool:
        with pytest.raises(RuntimeError, match="keep dying") as raised:
            pool.rollouts(calls(), WEIGHTS)
        assert "is not a checkpoint" in str(raised.value.__cause__)


@pytest.mark.ray
def test_number_of_actors(ray_cluster: None) -> None:
    assert num_actors(Cluster(workers=0), 4, num_calls=8) == 0
    assert num_actors(CLUSTER, 0, num_calls=8) == 0
    assert num_actors(CLUSTER, 5, num_calls=8) == 5
    assert num_actors(CLUSTER, 5, num_calls=3) == 3
    assert num_actors(CLUSTER, None, num_calls=99) >= 2


@pytest.mark.long
@pytest.mark.ray
def test_stage_on_ray_with_a_killed_worker_is_the_stage_in_this_process(tmp_path: Path, ray_cluster: None) -> None:
    """Two train workers, one of them killed before the third step, two rollout actors; against none of all that."""
    path = parent(tmp_path)
    here = replace(stage_of(tmp_path, "here"), runtime=Runtime(save_every=1))
    source = here.source
    assert isinstance(source, RolloutSource)
    expected = run_stage(here, lambda row: None)
    marker = tmp_path / "killed"

    def deadly(steps: int) -> Schedule:
        usual = linear_to_zero(steps, peak=0.5)

        def lr(step: int) -> float:
            if step == 2:
                try:
                    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return usual.lr(step)

        return usual._replace(lr=lr)

    with rollout_pool(partial(Sampler.load, path, ascii_reward, PARAMS, source.max_sequences), CLUSTER, 2) as pool:
        there = replace(here, name="tiny/there", schedule=deadly, source=replace(source, pool=pool))
        got = launch(there, CLUSTER)

    assert marker.exists()
    rewards = [[row["reward"] for row in read_metrics(work.folder)] for work in (here, there)]
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) == 4
    assert {k: got[k] for k in ("reward_first", "reward_last", "tokens", "workers")} == {
        **{k: expected[k] for k in ("reward_first", "reward_last", "tokens")},
        "workers": 2,
    }
    ours, theirs = (
        load_file(paths.join(str(checkpoint.latest(work.folder)), "model.safetensors")) for work in (here, there)
    )
    # Muon's orthogonalisation amplifies the rounding of gradients summed in another order
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)

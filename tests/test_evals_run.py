"""Evaluations over actors: same figures for any number, also when one dies on the way."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toy
from tiny import byte_tokenizer

from raychat import checkpoint
from raychat.cluster import Cluster
from raychat.cluster.map import actors_per_worker
from raychat.evals import bpb, samples
from raychat.evals.evaluation import Call, Evaluation, LoadedModel
from raychat.evals.run import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def path(folder: Path) -> str:
    """A checkpoint of a tiny model."""
    model, tokenizer = toy.model(), byte_tokenizer()
    return checkpoint.save_checkpoint(str(folder / "base"), model, None, tokenizer, toy.meta(3))


@pytest.fixture(scope="module")
def evaluations(folder: Path) -> list[Evaluation]:
    rows = toy.token_folder(str(folder / "rows"), num_rows=200)
    return [bpb.bpb_evaluation(rows, max_rows=200), samples.continuations(["ab", "cd"], 4)]


def joined(name: str, work: Sequence[Any]) -> Evaluation:
    return Evaluation(name, [Call(name, run) for run in work], lambda results: {name: results})


def test_in_this_process(path: str, evaluations: list[Evaluation]) -> None:
    found = evaluate(path, evaluations, partial(actors_per_worker, Cluster(workers=0)))
    assert found.keys() == {"val_bpb", "val_loss", "outcomes", "interval", "samples", "seconds"}
    assert found["seconds"].keys() == {"bits per byte", "samples"}
    assert min(found["seconds"].values()) > 0
    loaded = LoadedModel.load(path)
    assert found["val_bpb"] == evaluations[0].finish([call(loaded) for call in evaluations[0].calls])["val_bpb"]
    assert [s["prompt"] for s in found["samples"]] == ["ab", "cd"]


def test_no_checkpoint_is_an_error(tmp_path: Path, evaluations: list[Evaluation]) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint"):
        evaluate(str(tmp_path / "step_000001"), evaluations, partial(actors_per_worker, Cluster(workers=0)))


def test_two_figures_of_one_name_are_an_error(path: str, evaluations: list[Evaluation]) -> None:
    with pytest.raises(ValueError, match="two evaluations give val_bpb"):
        evaluate(path, [evaluations[0], evaluations[0]], partial(actors_per_worker, Cluster(workers=0)))


def test_long_calls_come_first_and_results_keep_their_order(path: str) -> None:
    made: list[int] = []

    def run(loaded: LoadedModel, number: int) -> int:
        made.append(number)
        return number

    costs = [3.0, 1.0, 2.0, 3.0]
    calls = [Call("numbers", partial(run, number=i), cost) for i, cost in enumerate(costs)]
    evaluation = Evaluation("numbers", calls, lambda results: {"numbers": results})
    found = evaluate(path, [evaluation], partial(actors_per_worker, Cluster(workers=0)))
    assert found["numbers"] == [0, 1, 2, 3]
    assert made == [0, 3, 2, 1]


@pytest.mark.ray
def test_number_of_actors_does_not_matter(path: str, evaluations: list[Evaluation], ray_cluster: None) -> None:
    here = evaluate(path, evaluations, partial(actors_per_worker, Cluster(workers=0)))
    there = evaluate(path, evaluations, partial(actors_per_worker, Cluster(workers=2, gpus_per_worker=0)))
    assert there["samples"] == here["samples"]
    # rounding of matrix products may differ with the threads of a process
    assert there["val_bpb"] == pytest.approx(here["val_bpb"], rel=1e-6)


@pytest.mark.ray
def test_piece_of_a_dead_actor_is_done_again(
    path: str, tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "died"

    def number_or_death(loaded: LoadedModel, number: int) -> int:
        if number == 2 and not marker.exists():  # the first process to come here dies
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * loaded.model.config.n_layer

    work = [partial(number_or_death, number=i) for i in range(6)]
    found = evaluate(path, [joined("numbers", work)], partial(actors_per_worker, Cluster(workers=2, gpus_per_worker=0)))
    assert found["numbers"] == [0, 2, 4, 6, 8, 10]
    assert marker.exists()
    assert "an actor died and is replaced" in capfd.readouterr().out


@pytest.mark.ray
def test_error_in_the_work_is_raised_here(path: str, ray_cluster: None) -> None:
    def fail(loaded: LoadedModel, number: int) -> int:
        if number == 1:
            raise ArithmeticError("piece 1 is wrong")
        return number

    work = [partial(fail, number=i) for i in range(3)]
    with pytest.raises(ArithmeticError, match="piece 1 is wrong"):
        evaluate(path, [joined("numbers", work)], partial(actors_per_worker, Cluster(workers=1, gpus_per_worker=0)))

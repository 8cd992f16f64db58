"""Every number that a job takes: one that is too small or too large is refused before anything is done."""

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from jobs import (
    base_eval,
    base_train,
    chat_cli,
    chat_eval,
    infer_bench,
    mid_train,
    report,
    rl_train,
    sample,
    serve,
    sft_train,
    speedrun,
    tok_eval,
    tok_train,
)
from raychat.cluster import Cluster
from raychat.recipe import Runtime
from raychat.serve.settings import ServerSettings
from raychat.tokenizer import SPECIAL_TOKENS

JOBS = (base_eval, base_train, chat_cli, chat_eval, infer_bench, mid_train, report)
JOBS += (rl_train, sample, serve, sft_train, speedrun, tok_eval, tok_train)
ANY = {("chat_cli", "seed"), ("chat_cli", "top_k")}  # -1 has a meaning
ZERO = "eval_every save_every keep seed num_eval rollout_workers min_replicas temperature price_per_hour port min_p "
ZERO += "kl ahead core_items"
LEAST = dict.fromkeys(ZERO.split(), 0) | {"head_dim": 2, "samples": 2, "new_tokens": 2}
LEAST |= {"vocab_size": 256 + len(SPECIAL_TOKENS)}  # the least value of a setting, 1 where nothing is said
LARGE = {"seed": 2**64, "port": 2**16, "top_p": 1.5, "min_p": 1.5}
RUNTIME = {field.name for field in dataclasses.fields(Runtime)}


def accept(job: ModuleType, **settings: Any) -> None:
    """Give settings to what checks them: the job's `Args`, or what they go to before anything is done."""
    args = job.Args(**settings)
    if settings.keys() <= RUNTIME:
        Runtime(**settings)
    elif job is serve:
        ServerSettings(port=args.port)
    elif job is chat_cli:
        chat_cli.run(args)
    elif job is speedrun:
        speedrun.pipeline(args)


def settings_of(kinds: str) -> list[Any]:
    """Return (job, name) of every setting whose type is one of these kinds."""
    return [
        pytest.param(job, field.name, id=f"{job.__name__.removeprefix('jobs.')}-{field.name}")
        for job in JOBS
        for field in dataclasses.fields(job.Args)
        if re.search(rf"\b({kinds})\b", str(field.type))
    ]


def is_refused(name: str, value: Any, accept: Callable[..., object]) -> None:
    flag = re.sub("[-_]", "[-_]", name)
    with pytest.raises(ValueError, match=rf"{flag} is {re.escape(str(value))}; expected"):
        accept(**{name: value})


@pytest.mark.parametrize("job, name", settings_of("int|float"))
def test_number_below_its_least_is_refused(job: ModuleType, name: str) -> None:
    least = LEAST.get(name, 1)
    if (job.__name__.removeprefix("jobs."), name) not in ANY:
        for value in {-1, least - 1}:
            wrong = (4, value) if name == "batch_sizes" else value
            is_refused(name, wrong, partial(accept, job))


@pytest.mark.parametrize("job, name", settings_of("float"))
def test_number_that_is_none_is_refused(job: ModuleType, name: str) -> None:
    for value in (math.nan, math.inf):
        is_refused(name, value, partial(accept, job))


@pytest.mark.parametrize("job, name", [s for s in settings_of("int|float") if s.values[1] in LARGE])
def test_number_above_its_most_is_refused(job: ModuleType, name: str) -> None:
    is_refused(name, LARGE[name], partial(accept, job))


@pytest.mark.parametrize("name", ["workers", "gpus_per_worker", "max_failures"])
def test_cluster_of_less_than_nothing_is_refused(name: str) -> None:
    is_refused(name, -1, Cluster)


def test_no_batch_size_is_refused() -> None:
    is_refused("batch_sizes", (), infer_bench.Args)


@pytest.mark.parametrize("wrong", ["mmlv", "mmlu*x", "mmlu*0", "mmlu*"])
@pytest.mark.parametrize("stage", ["mid", "sft"])
def test_wrong_tasks_are_refused_before_the_first_step(stage: str, wrong: str, raychat_home: Any) -> None:
    for dry_run in (False, True):
        args = speedrun.Args(**{f"{stage}_tasks": ("mmlu", wrong)}, dry_run=dry_run, cluster=Cluster(workers=0))
        with pytest.raises(ValueError, match=re.escape(wrong)):
            speedrun.run(args)
    assert not list(raychat_home.iterdir())


def test_unknown_task_to_evaluate_is_refused_before_the_first_step(raychat_home: Any) -> None:
    with pytest.raises(ValueError, match="no task is called 'gsm9k'; expected one of"):
        speedrun.run(speedrun.Args(eval_tasks=("gsm9k",), cluster=Cluster(workers=0)))
    assert not list(raychat_home.iterdir())

"""Replicas and ingresses that die or get too much to do, and the choice of a replica."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from test_cluster_serve import LETTERS, application, engines, trained_tokenizer
from test_serve import ask, wait_until
from test_serve_models import request, served, write

from raychat.serve.types import ChatRequest, CompletionRequest
from raychat.tokenizer import Tokenizer

__all__ = ["trained_tokenizer"]  # a fixture
NUM_TOKENS = 500
TEXT = "".join(chr(97 + i % LETTERS) for i in range(NUM_TOKENS))


@pytest.fixture(scope="module")
def twice(
    ray_cluster: None, trained_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """The application with two replicas, which generate two answers each, behind two ingresses."""
    settings = {"max_sequences": 2, "min_replicas": 2, "max_replicas": 2, "max_queued": 8}
    with application(tmp_path_factory.mktemp("twice"), trained_tokenizer, **settings) as api:
        yield api


def pids(deployment: str) -> list[int]:
    """Return the process ids of a deployment's running replicas."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]["raychat"]["deployments"][deployment]
    return [replica["pid"] for replica in details["replicas"] if replica["state"] == "RUNNING"]


class Answer(NamedTuple):
    """What a client got, and when, in seconds."""

    began: float
    ended: float
    text: str  # of the answer or the error


@contextlib.contextmanager
def whole_answers(api: openai.OpenAI, num_clients: int, num_tokens: int = NUM_TOKENS) -> Iterator[list[Answer]]:
    """Ask from several threads, over and over, while the block runs; yield their answers and errors."""
    answers: list[Answer] = []
    ended = threading.Event()

    def asks() -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                text = ask(api, max_tokens=num_tokens).choices[0].message.content
            except openai.OpenAIError as e:
                text = f"{e!r} from {e.__cause__!r}"
            answers.append(Answer(began, time.monotonic(), text))

    with ThreadPoolExecutor(num_clients) as threads:
        for _ in range(num_clients):
            threads.submit(asks)
        try:
            yield answers
        finally:
            ended.set()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["ModelReplica", "Ingress"])
def test_killed_process_loses_no_whole_answer(twice: openai.OpenAI, deployment: str) -> None:
    """The ingress asks another replica, HAProxy another ingress; clients do not ask again."""
    with whole_answers(twice, num_clients=4) as answers:
        assert wait_until(lambda: len(answers) >= 2)
        victim = pids(deployment)[0]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        assert wait_until(lambda: victim not in pids(deployment) and len(pids(deployment)) == 2)
        count = len(answers)
        assert wait_until(lambda: len(answers) >= count + 4)
    assert any(answer.began < killed < answer.ended for answer in answers)
    assert {answer.text for answer in answers} == {TEXT}


@pytest.mark.ray
@pytest.mark.slow
def test_stream_from_a_killed_replica_ends_with_an_error_event(twice: openai.OpenAI) -> None:
    """Every replica is killed at the first token; a slow client may still have found the whole answer on its way."""

    def killed_answer() -> str:
        victims = pids("ModelReplica")
        stream = ask(twice, stream=True)
        next(stream)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        try:
            end: str = [chunk.choices[0].finish_reason for chunk in stream][-1]
        except openai.APIError as e:
            end = e.message
        assert wait_until(lambda: len(set(pids("ModelReplica")) - set(victims)) == 2)
        return end

    ends = (killed_answer() for _ in range(3))
    assert "replica is gone" in next((end for end in ends if end != "length"), "")


@pytest.mark.ray
@pytest.mark.slow
def test_overload_is_429_and_passes(twice: openai.OpenAI) -> None:
    """Eighty requests at once, to a service that generates four answers and lets eight wait at each ingress."""
    url = f"{twice.base_url}chat/completions"
    body = {"messages": [{"role": "user", "content": "?"}], "temperature": 0, "max_tokens": 100}

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=600) as http:
            return await asyncio.gather(*(http.post(url, json=body) for _ in range(80)))

    refused = [answer for answer in asyncio.run(flood()) if answer.status_code != 200]
    assert 0 < len(refused) < 80
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert ask(twice, max_tokens=3).choices[0].message.content == "abc"


@pytest.mark.ray
@pytest.mark.slow
def test_clients_that_vanish_leave_no_request(twice: openai.OpenAI) -> None:
    """Forty clients give up on whole answers of four thousand tokens each, more than run and wait at once."""
    tokens = sum(engines(twice, "generated_tokens_total"))
    with ThreadPoolExecutor(40) as threads:
        impatient = twice.with_options(timeout=2, max_retries=0)
        asked = [threads.submit(ask, impatient) for _ in range(40)]
    errors = [answer.exception() for answer in asked]
    assert all(isinstance(error, openai.APITimeoutError | openai.RateLimitError) for error in errors)
    assert wait_until(lambda: set(engines(twice, "running")) == {0})
    assert ask(twice.with_options(max_retries=20), max_tokens=3).choices[0].message.content == "abc"
    num_accepted = sum(isinstance(error, openai.APITimeoutError) for error in errors)
    assert sum(engines(twice, "generated_tokens_total")) - tokens < num_accepted * 4000


class Replica(NamedTuple):
    """What the router looks at in a replica."""

    replica_id: Any
    routing_stats: dict[str, Any]


@pytest.fixture(scope="module")
def choose() -> Callable[..., list[list[str]]]:
    """Choose among replicas, given as names with the models that each has; return their names."""
    from ray.serve._private.common import DeploymentID, ReplicaID, RequestMetadata
    from ray.serve.request_router import PendingRequest

    from raychat.cluster.replicas import AffinityRouter

    def chosen(replicas: dict[str, list[str]], model: str, beginning: str = "x") -> list[list[str]]:
        deployment = DeploymentID("ModelReplica", "raychat")
        candidates: Any = [Replica(ReplicaID(name, deployment), {"models": has}) for name, has in replicas.items()]
        metadata = RequestMetadata("1", "1", multiplexed_model_id=model, session_id=beginning)
        router = AffinityRouter.__new__(AffinityRouter)  # the choice needs none of Serve's state

        async def ranks_of() -> Any:
            return await router.choose_replicas(candidates, PendingRequest(args=[], kwargs={}, metadata=metadata))

        ranks = asyncio.run(ranks_of())
        return [[replica.replica_id.unique_id for replica in rank] for rank in ranks]

    return chosen


REPLICAS = {"a": ["sft", "rl"], "b": ["sft"], "c": ["rl"], "d": ["sft"]}


def test_replicas_that_have_the_model_come_first(choose: Callable[..., list[list[str]]]) -> None:
    ranks = choose(REPLICAS, "sft")
    assert [len(rank) for rank in ranks] == [2, 1, 1]
    assert {name for rank in ranks[:2] for name in rank} == {"a", "b", "d"}
    assert ranks[2] == ["c"]
    assert sorted(choose(REPLICAS, "base")[0]) == ["a", "b", "c", "d"]


def test_prompts_with_the_same_beginning_go_to_the_same_replicas(choose: Callable[..., list[list[str]]]) -> None:
    firsts = [choose(REPLICAS, "sft", beginning)[0] for beginning in "abcdefgh" for _ in range(3)]
    assert all(firsts[i] == firsts[i - i % 3] for i in range(len(firsts)))
    assert len({tuple(first) for first in firsts}) > 1
    without = {name: has for name, has in REPLICAS.items() if name != "d"}
    for beginning in "abcdefgh":  # a replica that goes away moves only the prompts that it had
        first = choose(REPLICAS, "sft", beginning)[0]
        assert "d" in first or choose(without, "sft", beginning)[0] == first


def test_whole_answer_says_how_long_its_first_token_was_held(tmp_path: Path) -> None:
    from raychat.cluster.replicas import ModelReplica

    write(tmp_path, "sft", 100, "ab")

    async def first(stream: bool) -> Any:
        replica = ModelReplica.__new__(ModelReplica)
        await replica.__init__(lambda: served(tmp_path)[0])  # as Serve makes it
        asked = request(None, 50).model_copy(update={"stream": stream})
        lists = [deltas async for deltas in replica.stream(asked)]
        return lists[0][0]

    assert asyncio.run(first(stream=False)).held_s > 0
    assert asyncio.run(first(stream=True)).held_s == 0


def test_all_turns_of_a_chat_begin_alike() -> None:
    from raychat.cluster.replicas import beginning_of

    def beginning(*texts: str, system: str = "") -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return beginning_of(ChatRequest.model_validate({"messages": messages}))

    assert beginning("Hi") == beginning("Hi", "Hello", "And?")
    assert beginning("Hi", system="Be brief") == beginning("Hi", "Hello", "And?", system="Be brief")
    assert len({beginning("Hi"), beginning("Ho"), beginning("Hi", system="Be brief")}) == 3
    few_shot = [1, 2, 3] * 300
    assert beginning_of(CompletionRequest(prompt=[*few_shot, 4])) == beginning_of(CompletionRequest(prompt=few_shot))

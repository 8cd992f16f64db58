"""Replicas that come and go: with the load, and with new settings. Clients do not ask again, and lose no answer."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from test_cluster_replicas import TEXT, pids, whole_answers
from test_cluster_serve import application, trained_tokenizer
from test_serve import wait_until

from raychat.tokenizer import Tokenizer

__all__ = ["trained_tokenizer"]  # a fixture
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
NUM_TOKENS = 100  # few, as a process that stops waits for two minutes, and the machine may be busy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scaling")


@pytest.fixture(scope="module")
def elastic(ray_cluster: None, home: Path, trained_tokenizer: Tokenizer) -> Iterator[openai.OpenAI]:
    """The application with one replica of two answers, or two."""
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 1}
    with application(home, trained_tokenizer, max_sequences=2, max_replicas=2, **delays) as api:
        yield api


def test_replicas_follow_the_load(elastic: openai.OpenAI) -> None:
    with whole_answers(elastic, 6, NUM_TOKENS) as many:
        assert wait_until(lambda: len(pids("ModelReplica")) == 2)
    with whole_answers(elastic, 1, NUM_TOKENS) as few:
        assert wait_until(lambda: len(pids("ModelReplica")) == 1)
        count = len(few)
        assert wait_until(lambda: len(few) > count)
    assert {answer.text for answer in [*many, *few]} == {TEXT[:NUM_TOKENS]}


def test_new_settings_lose_no_answer(elastic: openai.OpenAI, home: Path) -> None:
    """Every process is replaced: the old ones finish the answers that they have begun."""
    from ray import serve

    from raychat.cluster.serve import build

    old = {name: set(pids(name)) for name in ("ModelReplica", "Ingress")}
    with whole_answers(elastic, 2, NUM_TOKENS) as answers:
        assert wait_until(lambda: len(answers) >= 2)
        serve.run(build({"storage_path": str(home), "max_sequences": 3, "max_replicas": 1}), name="raychat")
        count = len(answers)
        assert wait_until(lambda: len(answers) >= count + 4)
        assert not any(old[name] & set(pids(name)) for name in old)
    assert {answer.text for answer in answers} == {TEXT[:NUM_TOKENS]}

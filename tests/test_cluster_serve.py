"""The application on Ray Serve, as the real `openai` client sees it, and its settings."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import toy
import yaml
from safetensors.torch import load_file, save_file
from test_serve import REPO, ask, client, health, more_streams_than_slots, wait_until
from tiny import scripted_model

from raychat.checkpoint import save_checkpoint
from raychat.serve.run import listen
from raychat.serve.transport import statistics_ports
from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

LETTERS = 26  # of the endless alphabet


@pytest.fixture(scope="module")
def trained_tokenizer() -> Tokenizer:
    import raychat_bpe

    text = "the quick brown fox jumps over the lazy dog and the dog says hello to the fox " * 3
    return Tokenizer.train(raychat_bpe.Counts([text], SPLIT_PATTERN), 300)


def write_chat_run(home: Path, tokenizer: Tokenizer, run: str = "tiny", stage: str = "sft") -> None:
    """Write a checkpoint that repeats the alphabet until its context of 4096 tokens is full."""
    script = [tokenizer.special["<|assistant_start|>"], *range(97, 97 + LETTERS), 97]
    model = scripted_model([script], sequence_len=4096, vocab_size=tokenizer.vocab_size)
    save_checkpoint(str(home / "runs" / run / stage), model, None, tokenizer, toy.meta(3, model))


def break_weights(path: str) -> None:
    """Make the head of a checkpoint NaN, which is never saved, and forget what its files should be."""
    weights = load_file(f"{path}/model.safetensors")
    save_file(
        weights | {"lm_head.weight": torch.full_like(weights["lm_head.weight"], torch.nan)}, f"{path}/model.safetensors"
    )
    meta = json.loads(Path(path, "meta.json").read_text())
    Path(path, "meta.json").write_text(json.dumps(meta | {"files": {}}))


def free_port() -> int:
    with listen("127.0.0.1", 0) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def application(home: Path, tokenizer: Tokenizer, **settings: Any) -> Iterator[openai.OpenAI]:
    """Serve a chat run on Ray Serve, with these settings of `build`; yield a client."""
    from ray import serve

    from raychat.cluster.serve import build

    write_chat_run(home, tokenizer)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"storage_path": str(home), **settings}), name="raychat")
    try:
        yield client(f"http://127.0.0.1:{port}")
    finally:
        serve.shutdown()


def engines(api: openai.OpenAI, metric: str) -> list[float]:
    """Return a metric of every engine."""
    lines = httpx.get(str(api.base_url).removesuffix("v1/") + "metrics", timeout=60).text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(f"raychat_{metric}{{")]


@pytest.mark.ray
def test_port_in_use_on_a_joined_cluster_is_an_error(ray_cluster: None, raychat_home: Path) -> None:
    """The first test that uses Serve. The other server shares its port, as the proxies of another cluster do."""
    from raychat.cluster import Cluster
    from raychat.cluster.serve import serve_on_ray

    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use.* --port N"):
            serve_on_ray({}, "127.0.0.1", port, Cluster())


@pytest.fixture(scope="module")
def served(
    ray_cluster: None, trained_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """The application under Ray Serve, one replica of one sequence."""
    settings = {"max_sequences": "1", "max_replicas": 1, "cors_origins": ["https://page.example"]}
    with application(tmp_path_factory.mktemp("served"), trained_tokenizer, **settings) as api:
        yield api


@pytest.mark.ray
def test_ray_serve_answers(served: openai.OpenAI) -> None:
    assert [m.id for m in served.models.list()] == ["tiny-sft"]
    answer = ask(served, max_tokens=20)
    assert answer.choices[0].message.content == "abcdefghijklmnopqrst"
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 20)
    chunks = list(ask(served, max_tokens=200, stream=True))
    text = "".join(chr(97 + i % LETTERS) for i in range(200))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


@pytest.mark.ray
def test_ray_serve_page_health_and_errors(served: openai.OpenAI) -> None:
    url = str(served.base_url).removesuffix("/v1/")
    answer = httpx.get(f"{url}/health", headers={"Origin": "https://page.example"}, timeout=60)
    assert answer.json()["status"] == "ok"
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "<title>raychat</title>" in httpx.get(url, timeout=60).text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(served, temperature=9, stream=True)
    with pytest.raises(openai.BadRequestError, match="4096, the context"):
        ask(served, messages=[{"role": "user", "content": "hello " * 5000}])


@pytest.mark.ray
def test_health_answers_while_streams_fill_the_replica(served: openai.OpenAI) -> None:
    with more_streams_than_slots(served):
        assert health(served) == 200


@pytest.mark.ray
def test_ray_serve_disconnect_frees_the_engine(served: openai.OpenAI) -> None:
    """A whole answer would have more than 4000 tokens. The replica runs one sequence, so the next question waits."""
    (before,) = engines(served, "generated_tokens_total")
    dropped = ask(served, stream=True)
    next(dropped), next(dropped)
    dropped.close()
    assert ask(served, max_tokens=3).choices[0].message.content == "abc"
    (after,) = engines(served, "generated_tokens_total")
    assert after - before < 4000


@pytest.mark.ray
def test_killed_replica_turns_health_503_until_it_is_replaced(served: openai.OpenAI) -> None:
    import ray

    (replica,) = (
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "#ModelReplica#" in actor["name"]
    )
    assert health(served) == 200
    ray.kill(ray.get_actor(replica, namespace="serve"))
    assert wait_until(lambda: health(served) == 503)
    assert wait_until(lambda: health(served) == 200)
    assert ask(served, max_tokens=3).choices[0].message.content == "abc"


@pytest.mark.ray
def test_failed_engine_turns_health_503(served: openai.OpenAI, trained_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """NaN has no most likely token to sample: the engine fails at the first request."""
    from ray import serve

    from raychat.cluster.serve import build

    script = scripted_model([], sequence_len=64, vocab_size=trained_tokenizer.vocab_size)
    path = save_checkpoint(str(tmp_path / "runs" / "nan" / "sft"), script, None, trained_tokenizer, toy.meta(3, script))
    break_weights(path)
    app = build({"storage_path": str(tmp_path), "max_replicas": 1})
    serve.run(app, name="nan", route_prefix="/nan")
    api = client(str(served.base_url).removesuffix("/v1/") + "/nan")
    assert health(api) == 200
    with pytest.raises(openai.InternalServerError, match="the engine has failed"):
        ask(api, model="nan-sft", temperature=1)
    assert wait_until(lambda: health(api) == 503)
    serve.delete("nan")


@pytest.mark.ray
def test_ending_leaves_the_other_applications_of_a_joined_cluster(
    served: openai.OpenAI, trained_tokenizer: Tokenizer, raychat_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last test that uses `served`: it replaces and ends its application."""
    from ray import serve

    from raychat.cluster import Cluster
    from raychat.cluster.serve import serve_on_ray

    @serve.deployment
    class Other:
        pass

    write_chat_run(raychat_home, trained_tokenizer)
    serve.run(Other.bind(), name="other", route_prefix="/other")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end_it() -> None:
        while signal.getsignal(signal.SIGTERM) is handlers[signal.SIGTERM]:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_it, daemon=True).start()
    try:
        settings = {"storage_path": str(raychat_home), "max_sequences": 1, "max_replicas": 1}
        serve_on_ray(settings, "127.0.0.1", free_port(), Cluster())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert list(serve.status().applications) == ["other"]
    said = capsys.readouterr().out
    assert all(str(port) in said for port in statistics_ports())


def test_build_says_what_is_wrong(raychat_home: Path) -> None:
    from raychat.cluster.serve import build

    with pytest.raises(ValueError, match=r"runs='1': no such setting; expected one of run, stage"):
        build({"runs": "1"})
    with pytest.raises(ValueError, match="max_sequences='many'"):
        build({"max_sequences": "many"})
    with pytest.raises(ValueError, match="make speedrun-tiny"):
        build({})
    with pytest.raises(ValueError, match="stage='pretrain'"):
        build({"stage": "pretrain"})


def test_build_takes_home_from_where_it_runs(raychat_home: Path, trained_tokenizer: Tokenizer) -> None:
    from raychat.cluster.serve import build

    write_chat_run(raychat_home, trained_tokenizer, run="other", stage="rl")
    app = build({})
    (model,) = app._bound_deployment.init_args
    (open_models,) = model._bound_deployment.init_args
    assert open_models.args == (str(raychat_home), "other-rl", None, 16, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_build_connects_to_no_cluster(raychat_home: Path, trained_tokenizer: Tokenizer) -> None:
    """`serve run` connects after it, where the user said. The address here is one of a cluster that has died."""
    write_chat_run(raychat_home, trained_tokenizer)
    program = "import ray; from raychat.cluster.serve import build; build({}); print(ray.is_initialized())"
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_serve_config_is_what_serve_and_build_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    from raychat.cluster.serve import ServeArgs, build

    config = yaml.safe_load((REPO / "serve_config.yaml").read_text())
    parsed = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)  # Ray ignores what it does not know
    assert (parsed.http_options.host, parsed.http_options.port) == ("127.0.0.1", 8000)
    (app,) = parsed.applications
    assert app.import_path == f"{build.__module__}:{build.__name__}"
    ServeArgs.model_validate(app.args)

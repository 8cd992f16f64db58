"""Compiling: where it pays, how often, and that the compiled loss is the model's."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from raychat.train.compiling import one_graph, pays
from raychat.train.run import run_stage
from raychat.train.token_feed import TokenSource


def test_compiling_pays_in_long_stages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = toy.model()
    tokens_of_a_second = 4 * 2 * 30e9 / model.flops_per_token()  # a quarter of the time of 2 threads at 30 GFLOP/s
    short, long = (pays(model, tokens=round(seconds * tokens_of_a_second)) for seconds in (199, 201))
    estimate = "compiling takes about 100 s and saves about {} s of this training"
    assert short == (False, estimate.format(199) + "; it is done from 200 s on (--compile True: always)")
    assert long == (True, estimate.format(201) + " (--compile False: eager)")
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert pays(model, tokens=10**12) == (False, "there is no C++ compiler c++")


def test_a_stage_says_on_which_path_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    model = toy.model()
    assert one_graph(model, tokens=10**12) == model.nll
    assert one_graph(model, tokens=10**12, compile=False) == model.nll
    assert one_graph(model, tokens=0, compile=True) != model.nll
    because = ("eager: there is no C++ compiler g++", "eager: as --compile says", "compiled: as --compile says")
    assert capsys.readouterr().out.splitlines() == list(because)


def test_the_compiler_is_told_how_much_a_step_may_keep() -> None:
    config = pytest.importorskip("torch._functorch.config")
    with config.patch(activation_memory_budget=1.0):
        one_graph(toy.model(), tokens=0, compile=True, activation_budget=0.5)
        assert config.activation_memory_budget == pytest.approx(0.5)


def test_stages_in_one_process_make_two_graphs_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation: no third one for a lower last batch, and no earlier stage's towards the limit."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compile_(f, backend=backend, **settings))
    for number, name in enumerate(("base", "mid", "sft"), 1):
        stage = toy.token_stage(tmp_path, name, replace(toy.RUNTIME, device_rows=4, compile=True), batch_tokens=5 * 32)
        assert isinstance(stage.source, TokenSource)
        stage = replace(stage, steps=3, source=replace(stage.source, max_val_rows=7))
        with torch._dynamo.config.patch(recompile_limit=2):
            run_stage(stage, lambda row: None)
        assert len(graphs) == 2 * number


def test_compiled_code_stays_on_this_machine_where_home_is_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", str(tmp_path)), ("RAYCHAT_HOME", "s3://bucket/raychat")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # to be put back after the test
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    one_graph(toy.model(), tokens=0, compile=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache" / "raychat" / "compiled")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_loss_and_gradients_are_the_models(raychat_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model, ids = toy.model(), torch.arange(128).view(4, 32)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    found = []
    for nll in (model.nll, one_graph(model, tokens=0, compile=True)):
        loss = nll(ids, (ids + 1) % 7)
        loss.sum().backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)  # fp32 sums in another order
    assert any((raychat_home / "compiled").rglob("*.cpp"))

"""The compiler gets the whole of a training step's forward pass as one graph, on a GPU's path, without a GPU."""

from typing import Any

import pytest
import torch
from tiny import on_fake_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

from raychat.model import base
from raychat.model.gpt import GPTConfig
from raychat.train.compiling import one_graph

B, T = 2, 160


@pytest.mark.parametrize("window_pattern", ["L", "SSL"])
def test_training_and_evaluation_are_one_graph_each(monkeypatch: pytest.MonkeyPatch, window_pattern: str) -> None:
    """Fake tensors have shapes and a device, but no numbers. The graphs hold attention, softcap and loss."""
    graphs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(base, "MANY_LOGITS", 1)
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compile_(f, backend=backend, **settings))
    config = GPTConfig(
        sequence_len=T, vocab_size=265, n_layer=3, n_head=4, n_kv_head=2, n_embd=64, window_pattern=window_pattern
    )
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = on_fake_gpu(config)
        nll, ids = one_graph(model, tokens=0), torch.zeros(B, T, dtype=torch.int64)
        for _ in range(2):
            assert nll(ids, ids).shape == (B, T)
            with torch.no_grad():
                model.eval()
                nll(ids, ids)
                model.train()
    assert len(graphs) == 2
    for calls in graphs:
        assert sum("varlen" in call for call in calls) == config.n_layer
        assert sum("cross_entropy" in call for call in calls) == 1

"""What a decode step asks of a GPU, counted without one: PyTorch's fake tensors run the CUDA path on shapes alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from raychat.engine import graphs, sampling
from raychat.model import cache as caches
from raychat.model.gpt import GPT, GPTConfig

BATCH = 4
FREE = ("device", "view", "reshape", "flatten", "split_with_sizes", "tensor_split", "chunk", "unbind")


class Calls(TorchDispatchMode):
    """Count calls that compute or move something, by name; views and questions about tensors are free."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        out = func(*args, **(kwargs or {}))
        casts = name == "to" and out is not args[0]
        if casts or name.endswith("_") or not (func.is_view or name in FREE):
            self.counts[name] += 1
        return out


def count_step(monkeypatch: pytest.MonkeyPatch, n_layer: int, *, replayed: bool = False) -> tuple[Counter[str], int]:
    """Return the calls of one decode step with sampling, and the transfers to the device.

    replayed: whether the step is a graph that has been recorded; what is in it does not count.
    """
    transfers = 0

    def to_device(array: np.ndarray, device: torch.device) -> Tensor:
        nonlocal transfers
        transfers += 1
        return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

    for module in (caches, graphs):
        monkeypatch.setattr(module, "to_device", to_device)
    cuda = torch.device("cuda")
    config = GPTConfig(sequence_len=160, vocab_size=265, n_layer=n_layer, n_head=4, n_kv_head=2, n_embd=64)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        with torch.inference_mode(False), cuda:
            model = GPT(config)
            for embedding in (model.wte, *model.value_embeds.values()):
                embedding.weight = nn.Parameter(embedding.weight.detach().to(torch.bfloat16))
        model.pack()
        cache = model.new_cache(2 * BATCH)
        cache.lengths[:BATCH] = 20

        def record(compute: Callable[[], graphs.Outputs]) -> tuple[graphs.Replay, graphs.Outputs]:
            return lambda: None, compute()

        steps = graphs.DecodeGraphs(model, cache, BATCH, record)

        def step() -> None:
            if not replayed:
                steps._steps.clear()
            tokens, _ = steps(np.arange(BATCH), np.zeros((BATCH, 6)))
            assert tokens.shape == (BATCH,)

        step()  # packs the weights
        step()  # is recorded
        transfers = 0
        with Calls() as calls:
            step()
    return calls.counts, transfers


def test_a_step_moves_its_tokens_once_and_its_parameters_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, transfers = count_step(monkeypatch, n_layer=2)
    assert transfers == 2
    waits = {"_local_scalar_dense", "nonzero", "item", "is_nonzero"}
    assert not waits & counts.keys()


def test_a_replayed_step_launches_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, transfers = count_step(monkeypatch, n_layer=6, replayed=True)
    assert transfers == 2
    assert counts["copy_"] == 2  # to where the graph reads
    assert sum(counts.values()) <= 4, counts


def test_penalties_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no numbers, so what reads one, or asks how many there are, raises."""
    moved: list[np.ndarray] = []

    def to_device(array: np.ndarray, device: torch.device) -> Tensor:
        moved.append(array)
        return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

    monkeypatch.setattr(sampling, "to_device", to_device)
    everything = sampling.SamplingParams(
        logit_bias=((3, 1.0),), repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=1.0
    )
    with FakeTensorMode(), torch.device("cuda"), Calls() as calls:
        prompt, generated = (torch.empty(n, dtype=torch.int64) for n in (5, 2))
        sampling.penalise(torch.empty(100), everything, prompt, generated)
    assert [array.tolist() for array in moved] == [[3], [1.0]]
    assert not {"_local_scalar_dense", "nonzero", "item", "_unique2"} & calls.counts.keys()


def test_a_layer_is_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows, value embedding and gate: 5 products, attention, and what is between them."""
    shallow, _ = count_step(monkeypatch, n_layer=2)
    deep, _ = count_step(monkeypatch, n_layer=6)
    added = deep - shallow
    assert added["_varlen_attn"] == 4
    assert added["linear"] == 4 * 4
    assert sum(added.values()) / 4 <= 26, added

"""Rows of a micro-batch follow from memory: against what the compiler's partitioner keeps, and for the presets."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from torch import Tensor

from raychat.model import registry
from raychat.model.base import Model
from raychat.model.loss import token_nll
from raychat.optim import build_optimizer
from raychat.train import memory, scaling

GIB = 2**30


def on_meta(depth: int, **sizes: Any) -> Model:
    shape = scaling.from_depth(depth, **sizes).model()
    with torch.device("meta"):
        return registry.build(registry.architecture("GPT", **shape)).place(torch.device("meta"), torch.bfloat16)


def kept_bytes_per_row(model: Model, num_rows: int = 1) -> float:
    """Sum what the min-cut partitioner keeps for the backward pass, weights and their casts left out."""
    aot = pytest.importorskip("torch._functorch.aot_autograd")
    partitioners = pytest.importorskip("torch._functorch.partitioners")
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    decompositions = pytest.importorskip("torch._inductor.decomposition")
    T = model.config.sequence_len
    found: list[int] = []

    def forward(graph: Any, inputs: Any) -> Any:
        *_, output = graph.graph.nodes
        values = [node.meta["val"] for node in output.args[0][1:] if node.op != "placeholder"]
        rows = [x for x in values if isinstance(x, Tensor) and ({T, num_rows * T} & {*x.shape})]
        found.append(sum(x.numel() * x.element_size() for x in rows))
        return graph

    with fake.FakeTensorMode(allow_non_fake_inputs=True):
        plain = registry.build(registry.architecture_of(model))
        own = dict(model.named_parameters())
        names = [name for name, _ in plain.named_parameters()]
        params = [torch.nn.Parameter(torch.empty(p.shape, dtype=own[n].dtype)) for n, p in plain.named_parameters()]
        idx = torch.zeros(num_rows, T, dtype=torch.int64)

        def loss(idx: Tensor, *values: Tensor) -> Tensor:
            plain._rotary = None  # type: ignore[assignment]  # made inside the traced function, as all else
            logits = torch.func.functional_call(plain, dict(zip(names, values, strict=True)), (idx,))
            return token_nll(logits, idx).sum()

        compiled = aot.aot_function(
            loss,
            fw_compiler=forward,
            bw_compiler=lambda graph, inputs: graph,
            partition_fn=partitioners.min_cut_rematerialization_partition,
            decompositions=decompositions.select_decomp_table(),
        )
        compiled(idx, *params)
    return found[0] / num_rows


def test_bytes_of_a_row_are_what_the_partitioner_keeps() -> None:
    model = on_meta(4, sequence_len=224, vocab_size=8192)
    step = memory.step_bytes(model, 1, 1, torch.bfloat16)
    logits_gradient = step.logits / 2
    counted, estimated = kept_bytes_per_row(model) + logits_gradient, step.activations + step.logits
    assert counted <= estimated <= 1.2 * counted


def test_the_other_bytes_are_those_of_a_step() -> None:
    model = toy.model().place(torch.device("cpu"), torch.bfloat16)
    optimizer = build_optimizer(model, lr_scale=0.1, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(0.1, 0.95, 0.1)
    step = memory.step_bytes(model, 0, 1, torch.bfloat16)
    assert step.weights == sum(p.nbytes for p in model.parameters())
    assert step.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = sum(slot.rows.nbytes for group in optimizer._groups for slot in group.slots())
    assert 0.95 * state < step.optimizer <= state  # without the variances of Muon's rows, some 1/n_embd of it
    assert step.casts == sum(2 * p.numel() for p in model.parameters() if p.dtype == torch.float32)
    assert step.activations == step.logits == 0


@pytest.fixture(scope="module")
def kept_of_64_rows() -> float:
    return kept_bytes_per_row(on_meta(4, sequence_len=224, vocab_size=8192), num_rows=64)


@pytest.mark.parametrize("budget", [0.7, 0.5, 0.3])
def test_a_budget_of_activations_keeps_no_more_than_its_share(budget: float, kept_of_64_rows: float) -> None:
    model = on_meta(4, sequence_len=224, vocab_size=8192)
    config = pytest.importorskip("torch._functorch.config")
    with config.patch(activation_memory_budget=budget):
        kept = kept_bytes_per_row(model, num_rows=64)
    step = memory.step_bytes(model, 1, 1, torch.bfloat16, budget)
    logits = step.logits / 2  # the other half is their gradient
    assert budget / 2 * kept_of_64_rows < kept < step.activations + logits


def test_a_budget_makes_room_for_more_rows() -> None:
    model = on_meta(20)
    rows = [memory.rows_that_fit(model, 24 * GIB, 8, torch.bfloat16, budget) for budget in (1.0, 0.3)]
    assert rows[1] > rows[0]


@pytest.fixture(scope="module")
def kept_at_d24s_width() -> tuple[float, float]:
    """What the partitioner keeps per token and channel: in a layer, and outside of the layers without the logits."""
    T, C, kept = 224, 1536, {}
    for layers in (2, 4):
        model = on_meta(layers, width=C, head_dim=128, sequence_len=T)
        kept[layers] = (kept_bytes_per_row(model) / T - 2 * model.config.vocab_size) / C
    layer = (kept[4] - kept[2]) / 2
    return layer, kept[2] - 2 * layer


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("depth, gib", [(20, 80), (24, 80), (32, 80), (12, 24), (20, 24), (24, 24)])
def test_rows_fit_by_the_partitioners_count(
    depth: int, gib: int, workers: int, kept_at_d24s_width: tuple[float, float]
) -> None:
    model = on_meta(depth)
    config, (layer, outside) = model.config, kept_at_d24s_width
    rows = memory.rows_that_fit(model, gib * GIB, workers, torch.bfloat16)
    of_a_token = (layer * config.n_layer + outside) * config.n_embd + 2 * 2 * config.vocab_size  # logits, gradient
    of_a_row = of_a_token * config.sequence_len
    others = sum(memory.step_bytes(model, 0, workers, torch.bfloat16))
    assert others + rows * of_a_row < 0.9 * gib * GIB < others + 2 * rows * of_a_row


@pytest.mark.parametrize("workers", [1, 8])
def test_a_model_that_is_too_large_is_refused(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=24 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    cuda = torch.device("cuda")
    assert memory.device_rows(on_meta(24), cuda, workers, torch.bfloat16) >= 1
    with pytest.raises(ValueError, match=rf"on {workers} workers takes \d\d.\d GiB .* has 24.0 GiB: too small"):
        memory.device_rows(on_meta(32), cuda, workers, torch.bfloat16)


def test_d20_at_32_rows_does_not_fit_an_80_gb_gpu() -> None:
    model = on_meta(20)
    need = sum(memory.step_bytes(model, 32, 1, torch.bfloat16))
    assert need / GIB == pytest.approx(88, rel=0.05)
    assert memory.rows_that_fit(model, 80 * GIB, 1, torch.bfloat16) == 16


def test_count_is_what_a_gpu_needed() -> None:
    """PyTorch 2.11 on an H200 allocated 63.6 GiB at most for compiled steps of d12 with 64 rows."""
    need = sum(memory.step_bytes(on_meta(12), 64, 1, torch.bfloat16))
    assert 63.6 < need / GIB < 1.1 * 63.6


def test_less_memory_gives_fewer_rows_but_at_least_one() -> None:
    model = on_meta(12)
    rows = [memory.rows_that_fit(model, size * GIB, 8, torch.bfloat16) for size in (1, 8, 24, 80, 141)]
    assert rows == sorted(rows)
    assert rows[0] == 1
    assert memory.device_rows(model, torch.device("cpu"), 8, torch.float32) == 4096 // 2048

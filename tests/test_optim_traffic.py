"""What a worker sends in a step of the optimizer and keeps after it, counted with fake tensors and workers."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as td
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from raychat.model import registry
from raychat.model.base import Model, Muon
from raychat.optim import build_optimizer
from raychat.optim.shards import deal
from raychat.train import scaling

WORKERS = (1, 2, 4, 8)
# Bytes that each worker sends in a collective, over those of its largest buffer (the usual ring).
SENDS = {"reduce_scatter": 1.0, "allgather": 1.0, "allreduce": 2.0}


class Collectives(TorchDispatchMode):
    """Add up the bytes that a worker of so many sends."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.share, self.sent = (num_workers - 1) / num_workers, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func.name().split("::")
        if namespace == "c10d":
            factor = next(factor for kind, factor in SENDS.items() if kind in name)
            tensors = [tensor for arg in args for tensor in (arg if isinstance(arg, list | tuple) else [arg])]
            sizes = [t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)]
            self.sent += factor * self.share * max(sizes)
        return func(*args, **(kwargs or {}))


class Step(NamedTuple):
    sent: float  # bytes, in a step
    kept: float  # bytes of optimizer state
    ideal_sent: float  # ZeRO-2's: every gradient once to its owner, every weight once from there
    state: float  # bytes, all workers together


@pytest.fixture
def process_group(request: pytest.FixtureRequest) -> Iterator[int]:
    """A group of the given number of workers, of which this process is the first; its collectives do nothing."""
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    td.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=request.param)
    yield request.param
    td.destroy_process_group()


def model_of(depth: int) -> Model:
    """A preset's model as it is on a GPU: embeddings in bf16, the rest in float32."""
    model = registry.build(registry.architecture("GPT", **scaling.from_depth(depth).model()))
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(module.weight.detach().to(torch.bfloat16))
    return model


def count(depth: int, num_workers: int, read_as: torch.dtype) -> Step:
    with FakeTensorMode():
        model = model_of(depth)
        optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.1, matrices_read_as=read_as)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        with Collectives(num_workers) as collectives:
            optimizer.step()
        slots = [slot for group in optimizer._groups for slot in group.slots()]
        kept = sum(slot.rows.numel() * 4 for slot in slots)
        rates = model.optimizer_rates()
        gradients = sum(p.numel() * p.element_size() for p in model.parameters())
        weights = sum(
            p.numel() * (read_as.itemsize if isinstance(rates[name], Muon) else p.element_size())
            for name, p in model.named_parameters()
        )
        state = sum(p.numel() * (4 if isinstance(rates[name], Muon) else 8) for name, p in model.named_parameters())
    return Step(collectives.sent, kept, (gradients + weights) * (num_workers - 1) / num_workers, state)


@pytest.mark.parametrize("depth", [12, 24])
@pytest.mark.parametrize("process_group", WORKERS, indirect=True)
@pytest.mark.parametrize("read_as", [torch.float32, torch.bfloat16])
def test_traffic_and_state_of_a_worker_are_those_of_zero_2(
    process_group: int, depth: int, read_as: torch.dtype
) -> None:
    step = count(depth, process_group, read_as)
    assert step.sent == pytest.approx(step.ideal_sent, rel=0.001)  # the gates' padding and the scalars' sum
    assert step.kept == pytest.approx(step.state / process_group, rel=0.01)  # Muon's second moments are not in `state`


@pytest.mark.parametrize("depth", [10, 12, 20, 24, 32])
@pytest.mark.parametrize("workers", [2, 3, 7, 8, 16])
def test_workers_own_nearly_equal_parts_of_the_matrices(depth: int, workers: int) -> None:
    """Also where their number divides none of the counts."""
    with torch.device("meta"):
        model = model_of(depth)
    sizes = [p.numel() for name, p in model.named_parameters() if name.startswith("blocks.")]
    owners = deal(sizes, workers)
    sums = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(workers)]
    assert max(sums) * workers < 1.07 * math.fsum(sizes)

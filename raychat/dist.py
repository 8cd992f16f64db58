"""What a worker knows of the others: what `torch.distributed` knows. Everything works without a process group."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

T = TypeVar("T")


class World(NamedTuple):
    """This process among the data-parallel workers."""

    rank: int
    size: int


def world() -> World:
    """Return this worker's rank and the number of workers; (0, 1) without a process group."""
    if td.is_available() and td.is_initialized():
        return World(td.get_rank(), td.get_world_size())
    return World(0, 1)


def sum_(tensor: Tensor) -> Tensor:
    """Sum a tensor over all workers in place and return it. Every worker must call it."""
    if world().size > 1:
        td.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all workers."""
    if world().size > 1:
        # td.barrier() on nccl would have to guess the device; this all-reduce runs on the current one
        td.all_reduce(torch.zeros(1, device=_device()))


def gather(value: Any) -> list[Any]:
    """Return the picklable values of all workers in rank order, on every worker."""
    size = world().size
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    td.all_gather_object(values, value)
    return values


def together(action: Callable[[], T]) -> list[T]:
    """Call `action` on every worker; return all results in rank order. When it fails on one, all raise.

    So no worker waits for one that has failed.

    Raises:
        Exception: The action's own on a worker where it failed, RuntimeError with its text on the others.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    outcomes = gather((result, error and f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, text) in enumerate(outcomes):
        if text is not None:
            raise RuntimeError(f"worker {rank} failed: {text}")
    return [result for result, _ in outcomes]


def on_rank_0(action: Callable[[], object]) -> None:
    """Call `action` on rank 0 while the others wait; an error is raised on all."""
    together(action if world().rank == 0 else lambda: None)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if td.get_backend() == "nccl" else torch.device("cpu")

"""The machine's limit for a decode step, as seconds: the model's matrix products and nothing else.

A step that decodes B sequences reads every weight matrix once and multiplies it by B rows. At small B the memory's
bandwidth bounds it, at large B the speed of the products. Running exactly these products, back to back on random rows,
meets whichever bound holds on this machine, at these shapes and with this number of threads.

It counts the weights of all `nn.Linear` layers, the head included, in the activations' dtype. It does not count
embedding look-ups, attention over the cache, norms, sampling or Python: a real step always takes longer. Where all
weights fit into a cache of the processor (d4 in bf16 is 23 MB), that cache is the memory.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from raychat.device import synchronize
from raychat.model.base import Model


def step_limit_s(model: Model, batch: int, repeats: int = 5) -> float:
    """Measure the fastest possible decode step of `batch` sequences in seconds: the best of `repeats` runs.

    Compare it only with times of the same process, and measure both in turns: a machine's speed drifts.

    Args:
        model: as `Model.place` left it, before any packing of its weights.

    Raises:
        ValueError: `batch` or `repeats` is less than 1.
    """
    if batch < 1 or repeats < 1:
        raise ValueError(f"batch is {batch} and repeats is {repeats}; expected whole numbers >= 1")
    return best_s(decode_products(model, batch), next(model.parameters()).device, repeats)


def best_s(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` calls, after one that does not count."""
    step()
    best = math.inf
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def decode_products(model: Model, batch: int) -> Callable[[], None]:
    """Return a function that runs a decode step's matrix products once, without allocating memory.

    On CUDA it replays a graph, so that the time of launching kernels does not count.
    """
    embedding = next(module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    weights = [m.weight.detach().to(embedding.dtype) for m in model.modules() if isinstance(m, nn.Linear)]
    rows = {size: embedding.new_empty(batch, size).normal_() for size in {w.size(1) for w in weights}}
    out = {size: embedding.new_empty(batch, size) for size in {w.size(0) for w in weights}}

    @torch.inference_mode()
    def multiply() -> None:
        for w in weights:
            torch.mm(rows[w.size(1)], w.t(), out=out[w.size(0)])

    return _recorded(multiply) if embedding.is_cuda else multiply


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """Return a CUDA graph of the kernels that `step` launches, as a function that runs them."""
    step()  # cuBLAS sets itself up outside the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay

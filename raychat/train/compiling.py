"""Whether a stage's model is compiled: always on a GPU, on a CPU where the stage is long enough to pay for it."""

import os
import shutil

import torch
import torch._functorch.config as functorch

from raychat import disk, dist, paths
from raychat.model.base import Model
from raychat.train.loop import Nll

# Measured on CPUs (docs/LOG.md): what an uncompiled step reaches, what compiling takes, what it then saves of a step.
EAGER_FLOPS = 30e9  # a second and thread
COMPILE_S = 100.0
SAVED = 0.25
WORTH = 2.0  # times its cost, for it to be begun


def one_graph(model: Model, tokens: int, compile: bool | None = None, activation_budget: float = 1.0) -> Nll:
    """Return a model's `nll`, compiled whole for batches of one shape where that pays.

    Compiled code is kept on this machine, so that workers, stages and runs of the same shapes compile once; a folder of
    it that has grown too large is emptied before.

    Args:
        tokens: that this worker trains on.
        compile: whether to compile; None = by the device and the length of the training.
        activation_budget: share of the activations that is kept for the backward pass; it computes the rest anew.
    """
    if compile is False or (compile is None and not pays(model, tokens)):
        return model.nll
    folder = paths.on_this_machine("compiled")
    if os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder) == folder:
        disk.empty_if_large(folder)
    if dist.world().rank == 0:
        print("compiling the model; the first step takes a minute or two (--compile False: none of it)", flush=True)
    functorch.activation_memory_budget = activation_budget
    torch._dynamo.reset()  # graphs of earlier stages count towards the compiler's limit, and hold their models
    nll: Nll = torch.compile(model.nll, dynamic=False, fullgraph=True)
    return nll


def pays(model: Model, tokens: int) -> bool:
    """Estimate whether compiling saves more time than it takes; False on a CPU without a C++ compiler."""
    if model.device.type == "cuda":
        return True
    saved_s = SAVED * tokens * model.flops_per_token() / (EAGER_FLOPS * torch.get_num_threads())
    return saved_s > WORTH * COMPILE_S and shutil.which(os.environ.get("CXX", "g++")) is not None

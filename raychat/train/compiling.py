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
    """Return a model's `nll`, compiled whole for batches of one shape where that pays; print which, and why.

    Compiled code is kept on this machine, so that workers, stages and runs of the same shapes compile once; a folder of
    it that has grown too large is emptied before.

    Args:
        tokens: that this worker trains on.
        compile: whether to compile; None = by the device and the length of the training.
        activation_budget: share of the activations that is kept for the backward pass; it computes the rest anew.
    """
    compiles, reason = pays(model, tokens) if compile is None else (compile, "as --compile says")
    if dist.world().rank == 0:
        print(f"{'compiled' if compiles else 'eager'}: {reason}", flush=True)
    if not compiles:
        return model.nll
    folder = paths.on_this_machine("compiled")
    if os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder) == folder:
        disk.empty_if_large(folder)
    functorch.activation_memory_budget = activation_budget
    torch._dynamo.reset()  # graphs of earlier stages count towards the compiler's limit, and hold their models
    nll: Nll = torch.compile(model.nll, dynamic=False, fullgraph=True)
    return nll


def pays(model: Model, tokens: int) -> tuple[bool, str]:
    """Estimate whether compiling saves more time than it takes, and say why; on a CPU it needs a C++ compiler."""
    if model.device.type == "cuda":
        return True, "the first step takes a minute or two, all others less time (--compile False: eager)"
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        return False, f"there is no C++ compiler {compiler}"
    saved_s = SAVED * tokens * model.flops_per_token() / (EAGER_FLOPS * torch.get_num_threads())
    estimate = f"compiling takes about {COMPILE_S:.0f} s and saves about {saved_s:.0f} s of this training"
    if saved_s > WORTH * COMPILE_S:
        return True, f"{estimate} (--compile False: eager)"
    return False, f"{estimate}; it is done from {WORTH * COMPILE_S:.0f} s on (--compile True: always)"

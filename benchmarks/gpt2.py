"""The training step of a GPT-2 on random tokens, as nanoGPT's bench.py times it.

    .venv/bin/python benchmarks/gpt2.py [--size gpt2] [--sequence-len 1024] [--rows 12] [--compile] [--trace FILE]

A step is one micro-batch, forward, backward and AdamW, in bf16 on a GPU that has it, else in fp32. A trace slows it
down. The last line is JSON:

    step_s        seconds of a step, the median
    tok_per_s     tokens a second
    mfu           model FLOPs a second by our count over the device's peak; None where that is unknown
    mfu_nanogpt   the same by nanoGPT's count, 6 N + 12 L H Q T per token, N all parameters without the positions', over
                  an A100's 312 TFLOP/s on any device
"""

import argparse
import itertools
import json
import statistics
import time

import numpy as np
import torch

from raychat import device as devices
from raychat.data.batches import Step, next_token
from raychat.model import flops, registry
from raychat.model.base import Model
from raychat.model.gpt2 import SIZES
from raychat.optim import build_optimizer, schedule
from raychat.train.compiling import one_graph
from raychat.train.loop import train
from raychat.train.profiling import STEPS, WARMUP_STEPS, traced

A100_FLOPS = 312e12


def nanogpt_flops_per_token(model: Model) -> int:
    """Count a token's FLOPs as nanoGPT does (PaLM, arXiv:2204.02311, appendix B)."""
    config = model.config
    counted = sum(p.numel() for name, p in model.named_parameters() if name != "wpe.weight")
    return 6 * counted + 12 * config.n_layer * config.n_embd * config.sequence_len


def seconds_of_steps(model: Model, rows: int, compile: bool, trace: str | None) -> list[float]:
    """Train on one batch again and again; return the seconds of each step after the first few."""
    T, device, ends = model.config.sequence_len, model.device, list[float]()
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, T + 1))
    batch = next_token(tokens, np.ones_like(tokens, dtype=bool), 1 / (rows * T), device)
    optimizer = build_optimizer(model, lr_scale=1.0, weight_decay=0.0)
    steps = WARMUP_STEPS + STEPS
    with traced(trace) as record:
        train(
            model,
            optimizer,
            itertools.repeat(Step([batch])),
            nll=one_graph(model, 0, compile=compile),
            steps=steps,
            schedule=schedule.cosine(steps),
            hooks=[record, lambda *_: ends.append(time.perf_counter())],  # the loss was read: the device is done
        )
    return [b - a for a, b in itertools.pairwise(ends)][-STEPS:]


def main(size: str, sequence_len: int, rows: int, compile: bool, trace: str | None) -> None:
    n_layer, n_head, n_embd = SIZES[size]
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "sequence_len": sequence_len}
    model = registry.build(registry.architecture("GPT2", **sizes))
    model.init_weights()
    device = devices.default_device()
    model.place(device, devices.compute_dtype(device))
    step_s = statistics.median(seconds_of_steps(model.train(), rows, compile, trace))
    tok_per_s = rows * sequence_len / step_s
    mfu = flops.mfu(tok_per_s, model.flops_per_token(), devices.peak_flops(device), workers=1)
    summary = {
        "benchmark": "gpt2",
        "size": size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "step_s": round(step_s, 4),
        "tok_per_s": round(tok_per_s, 1),
        "mfu": None if mfu is None else round(mfu, 4),
        "mfu_nanogpt": round(tok_per_s * nanogpt_flops_per_token(model) / A100_FLOPS, 6),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--sequence-len", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--trace", help="file for a trace of three steps, .json.gz")
    given = parser.parse_args()
    main(given.size, given.sequence_len, given.rows, given.compile, given.trace)

"""What a GPU makes of raychat: its GPU tests, training steps and decoding, on random tokens. `make gpu-check` runs it.

    python3 benchmarks/gpu.py [--depths 12 24] [--seconds 15] [--minutes 8]

It needs PyTorch for CUDA, numpy and pytest: no other package, no crate, no network. It ends after 8 minutes at most;
what is not measured by then is named under `skipped`. On a CPU it runs, too, for the sake of its test. The last line is
JSON:

    tests                      exit code of pytest, 0 = all passed
    train.d12                  first_step_s (with compiling), tok_s, mfu, rows of a micro-batch, peak_gib, estimated_gib
    fp8.d12                    the same with --fp8 and mfu still that of bf16's peak, and `speedup`: tok_s over bf16's;
                               null without fp8 hardware
    decode.d12.16              tok_s with CUDA graphs and without, share of the memory's or the products' limit
    skipped                    names of what was cut short by the deadline, or not begun
"""

import argparse
import contextlib
import functools
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from raychat import device as devices
from raychat.data.batches import next_token
from raychat.engine.engine import Engine
from raychat.engine.limit import measure_speed
from raychat.engine.sampling import SamplingParams
from raychat.model import flops, registry
from raychat.model.base import Model
from raychat.optim import build_optimizer
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer
from raychat.train import fp8, memory
from raychat.train.compiling import one_graph
from raychat.train.loop import accumulate
from raychat.train.scaling import from_depth

GIB = 2**30
GPU_TESTS = ("tests/test_model_attention.py", "tests/test_engine_graphs.py")
PARAMS = SamplingParams(temperature=1.0, top_k=50, stop_ids=(), seed=1, max_new_tokens=200)


def run_tests() -> int:
    """Run the tests that need a GPU; return pytest's exit code."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    bare = ["-c", os.devnull, "--rootdir", root, "-p", "no:cacheprovider"]  # the project's settings name plugins
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *bare, *GPU_TESTS]
    return subprocess.run(command, cwd=root, check=False).returncode


def build(depth: int, device: torch.device, sizes: dict[str, int]) -> Model:
    """Return the model of a depth with random weights, none of them zero, on the device."""
    model = registry.build(registry.architecture("GPT", **from_depth(depth, **sizes).model()))
    model.init_weights()
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return model.place(device, devices.compute_dtype(device))


def seconds_of(step: Callable[[], object], device: torch.device, budget_s: float) -> Iterator[float]:
    """Yield the seconds of one step after the other, at least three, until the budget is spent."""
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < budget_s:
        devices.synchronize(device)
        began = time.perf_counter()
        step()
        devices.synchronize(device)
        count += 1
        yield time.perf_counter() - began


def train(
    depth: int, device: torch.device, budget_s: float, sizes: dict[str, int], *, in_fp8: bool = False
) -> dict[str, Any]:
    """Measure training steps of one micro-batch with the optimizer's step."""
    model = build(depth, device, sizes).train()
    if in_fp8:
        fp8.use_fp8(model)
    optimizer, nll = build_optimizer(model, lr_scale=0.1, weight_decay=0.1), one_graph(model, tokens=0)
    rows = memory.device_rows(model, device, 1, devices.compute_dtype(device))
    T = model.config.sequence_len
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, T + 1))
    batch = next_token(tokens, np.ones_like(tokens, dtype=bool), 1 / (rows * T), device)

    def step() -> None:
        accumulate(nll, [batch], device)
        optimizer.step(0.1, 0.95, 0.1)
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, *rest = seconds_of(step, device, budget_s)
    tok_s = rows * T / min(rest)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    dtype = devices.compute_dtype(device)
    estimate = sum(memory.step_bytes(model, rows, 1, dtype))
    mfu = flops.mfu(tok_s, model.flops_per_token(), devices.peak_flops(device), 1)
    return {
        "rows": rows,
        "first_step_s": round(first, 1),
        "step_s": round(min(rest), 4),
        "tok_s": round(tok_s),
        "mfu": mfu and round(mfu, 4),
        "peak_gib": round(peak / GIB, 2),
        "estimated_gib": round(estimate / GIB, 2),
    }


def decode(depth: int, batch: int, device: torch.device, budget_s: float, sizes: dict[str, int]) -> dict[str, float]:
    """Measure decode steps of `batch` sequences, with CUDA graphs and without."""
    model = build(depth, device, sizes).eval()
    vocab_size = model.config.vocab_size
    fillers = [i.to_bytes(3, "big") for i in range(vocab_size - 256 - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer([bytes([i]) for i in range(256)] + fillers)
    found: dict[str, float] = {}
    for name in ("graphs", "plain"):
        engine = Engine(model, tokenizer, max_sequences=batch, tool=lambda _: None)
        if name == "plain":
            engine._graphs = None
        elif engine._graphs is None:
            continue  # a CPU has none
        for _ in range(batch):
            engine.add([1] * 16, PARAMS)
        while engine.stats().generated_tokens < 3 * batch:
            engine.step()
        seconds = min(islice(seconds_of(engine.step, device, budget_s), PARAMS.max_new_tokens - 10))
        found[f"{name}_tok_s"] = round(batch / seconds, 1)
    limit = measure_speed(device, devices.compute_dtype(device)).step_limit_s(model, batch)
    return found | {"share_of_limit": round(limit * max(found.values()) / batch, 3)}


class Late(BaseException):
    """The time is over. No `Exception`: the compiler must not take it for an error of its own."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Leave the block after so many seconds, wherever it is."""

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(Late):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def measurements(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what there is to measure by its name in the result, in the order of its worth."""
    sizes = {"sequence_len": args.sequence_len, "vocab_size": args.vocab_size}
    first, *others = args.depths

    def trained(depth: int) -> dict[str, Callable[[], Any]]:
        in_bf16 = functools.partial(train, depth, device, args.seconds, sizes)
        in_fp8 = functools.partial(in_bf16, in_fp8=True) if fp8.lacks_fp8(device) is None else lambda: None
        return {f"train.d{depth}": in_bf16, f"fp8.d{depth}": in_fp8}

    plan: dict[str, Callable[[], Any]] = {"tests": run_tests} if args.tests else {}
    plan |= trained(first)
    for batch in args.batches:
        plan[f"decode.d{first}.{batch}"] = functools.partial(decode, first, batch, device, args.seconds, sizes)
    for depth in others:
        plan |= trained(depth)
    return plan


def main(args: argparse.Namespace) -> None:
    """Run everything that the time allows, and print it; the last line is JSON."""
    device = devices.default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {"benchmark": "gpu", "device": name, "torch": torch.__version__, "tests": None}
    result |= {"train": {}, "fp8": {}, "decode": {f"d{args.depths[0]}": {}}}
    plan, done = measurements(args, device), set[str]()
    with deadline(60 * args.minutes):
        for path, measure in plan.items():
            *parts, last = path.split(".")
            place = functools.reduce(operator.getitem, parts, result)
            place[last] = found = measure()
            if parts == ["fp8"] and found:
                found["speedup"] = round(found["tok_s"] / result["train"][last]["tok_s"], 3)
            done.add(path)
            print(f"{path}: {found}", flush=True)
    print(json.dumps(result | {"skipped": [path for path in plan if path not in done]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 24])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="of sequences that are decoded")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement, after compiling")
    parser.add_argument("--minutes", type=float, default=8, help="after which the rest is skipped")
    parser.add_argument("--sequence-len", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=2**15)
    parser.add_argument("--no-tests", dest="tests", action="store_false")
    main(parser.parse_args())

"""Training: how much of the machine a step uses, and what Ray, a second worker, the first step and the logits cost.

    .venv/bin/python benchmarks/train.py [--depths 4 6] [--sequence-len 512] [--vocab-size 8192] [--rows 8]

Random tokens, one micro-batch a step, fp32 except where bf16 is named. Contenders take turns; figures are the best
turns. Whatever starts Ray, compiles or measures memory runs in a process of its own, with the environment that Ray's
workers get. About nine minutes on two CPU cores. The last line is JSON:

    gemm_fraction               model FLOPs a second of a step over those of a square product in the same process
    gemm_fraction_compiled      the same under torch.compile
    bf16_vs_fp32                steps a second in bf16 over fp32, one row
    bf16_products_vs_fp32       the same where layers multiply in bf16 and all else is fp32, as on CPUs with AMX
    ray_vs_bare                 tokens a second of a stage on one Ray worker over `run_stage` without Ray
    two_workers_vs_one          the same of two Ray workers over one; on a CPU they share its cores
    first_step_s                the first compiled step of a process, nothing cached
    first_step_cached_s         the same in another process, with the compiler's cache of the first
    peak_memory_fused_vs_plain  memory of a step of a vocabulary of 32,768 over that of one that keeps all logits, where
                                ours computes those of some tokens at a time, and again in the backward pass
    step_fused_vs_plain         seconds of these steps
"""

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import interleave  # the benchmark beside this one
from torch import Tensor

from raychat import device as devices
from raychat.cluster import _ENVIRONMENT, Cluster
from raychat.data import shards
from raychat.data.batches import Batch, Step, next_token
from raychat.log import read_metrics
from raychat.model import registry
from raychat.model.base import MANY_LOGITS, Model
from raychat.model.loss import token_nll
from raychat.optim import Optimizer, build_optimizer, schedule
from raychat.recipe import Recipe, Runtime
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer
from raychat.train import loop
from raychat.train.compiling import one_graph
from raychat.train.products import use_bf16
from raychat.train.run import run_stage
from raychat.train.scaling import from_depth
from raychat.train.stage import Stage
from raychat.train.token_feed import TokenSource

LARGE_VOCAB = 32768
SQUARE = 2048  # rows and columns of the product that a step is compared with
WARMUP_STEPS = 2  # of a stage, not counted


@dataclass(frozen=True)
class Sizes:
    """What is trained: a model of a depth on micro-batches of `rows` rows."""

    depth: int
    sequence_len: int
    vocab_size: int
    rows: int

    def recipe(self) -> Recipe:
        sizes = from_depth(self.depth, sequence_len=self.sequence_len, vocab_size=self.vocab_size)
        model = registry.architecture("GPT", **sizes.model())
        return Recipe(model=model, batch_tokens=self.rows * self.sequence_len, lr_scale=0.1, weight_decay=0.1)


class Trainer:
    """A model, its optimizer and one batch."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype = torch.float32, bf16_products: bool = False) -> None:
        recipe, self.device = sizes.recipe(), devices.default_device()
        self.model: Model = registry.build(recipe.model)
        self.model.init_weights()
        self.model.place(self.device, dtype)
        if bf16_products:
            use_bf16(self.model)
        self.optimizer: Optimizer = build_optimizer(self.model, lr_scale=recipe.lr_scale, weight_decay=0.1)
        tokens = np.random.default_rng(0).integers(0, sizes.vocab_size, (sizes.rows, sizes.sequence_len + 1))
        self.batch = next_token(tokens, np.ones_like(tokens, dtype=bool), 1 / tokens[:, 1:].size, self.device)
        self.flops = self.model.flops_per_token() * self.batch.targets.numel()  # of a step

    def step_s(self, nll: loop.Nll | None = None) -> float:
        """Take one step of the training loop; return its seconds. nll: None = the model's."""
        batches = iter([Step([self.batch])])
        step = partial(
            loop.train,
            self.model,
            self.optimizer,
            batches,
            nll=nll or self.model.nll,
            steps=1,
            schedule=schedule.base(1),
        )
        return timed(step, self.device)

    def compiled(self) -> loop.Nll:
        """Return the model's `nll`, to be compiled at its first call."""
        return one_graph(self.model, 0, compile=True)

    def plain_nll(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Compute the model's `nll`, keeping all logits."""
        return token_nll(self.model(idx), targets)


def timed(run: Callable[[], object], device: torch.device) -> float:
    devices.synchronize(device)
    start = time.perf_counter()
    run()
    devices.synchronize(device)
    return time.perf_counter() - start


def gemm_fractions(sizes: Sizes, rounds: int) -> tuple[float, float]:
    """Return the FLOP/s of steps over those of a square product: eager, compiled."""
    eager, compiled = Trainer(sizes), Trainer(sizes)
    nll = compiled.compiled()
    square = torch.rand(SQUARE, SQUARE, device=eager.device)
    seconds = interleave(
        {
            "square": lambda: timed(lambda: square @ square, eager.device),
            "eager": eager.step_s,
            "compiled": lambda: compiled.step_s(nll),
        },
        rounds,
    )
    reached = 2 * SQUARE**3 / seconds["square"]
    print(
        f"d{sizes.depth}: product {reached / 1e9:.1f} GFLOP/s, a step of {eager.flops / 1e9:.1f} GFLOP: "
        f"{seconds['eager']:.2f} s, compiled {seconds['compiled']:.2f} s",
        flush=True,
    )
    return eager.flops / seconds["eager"] / reached, eager.flops / seconds["compiled"] / reached


def in_bf16(sizes: Sizes, rounds: int) -> dict[str, float]:
    """Return the speed of steps in bf16, and of steps whose products alone are, over fp32."""
    trainers = {
        "fp32": Trainer(sizes),
        "bf16": Trainer(sizes, torch.bfloat16),
        "bf16_products": Trainer(sizes, bf16_products=True),
    }
    seconds = interleave({name: trainer.step_s for name, trainer in trainers.items()}, rounds)
    print(", ".join(f"{name} {s:.2f} s a step" for name, s in seconds.items()), flush=True)
    return {f"{name}_vs_fp32": seconds["fp32"] / s for name, s in seconds.items() if name != "fp32"}


def first_step_s(sizes: Sizes, cache: str) -> float:
    """Return the seconds of a process's first compiled step. cache: the compiler's folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    trainer = Trainer(sizes)
    return trainer.step_s(trainer.compiled())


def step_memory(sizes: Sizes, fused: bool) -> tuple[float, float]:
    """Return the bytes that a step needs beyond what lies in memory between steps, and its seconds."""
    trainer = Trainer(sizes)
    batch, step = trainer.batch, partial(trainer.step_s, None if fused else trainer.plain_nll)
    trainer.batch = Batch(*(part[:1, :8] for part in batch))
    step()  # loads libraries and makes the caches of the optimizer, in little memory
    trainer.batch = batch
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = step()
        return torch.cuda.max_memory_allocated() - before, seconds
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory still counts as ours
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before, min(step() for _ in range(3))


def status_bytes(field: str) -> int:
    """Return a size that Linux counts for this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def tokens_per_s(sizes: Sizes, steps: int, workers: int) -> float:
    """Train a stage on this many Ray workers, 0 = without Ray; return the median speed of its steps."""
    from raychat.cluster.launch import launch

    with tempfile.TemporaryDirectory(prefix="raychat-bench-") as root:
        work = new_stage(sizes, steps, root)
        if workers == 0:
            run_stage(work, lambda row: None)
        else:
            launch(work, Cluster(workers=workers, storage_path=root))
        rates = [row["tok_per_s"] for row in read_metrics(work.folder) if "tok_per_s" in row]
    return statistics.median(rates[WARMUP_STEPS:])


def new_stage(sizes: Sizes, steps: int, root: str) -> Stage:
    """Make a stage below `root`, with its tokenizer and random token shards."""
    fillers = [i.to_bytes(3, "big") for i in range(sizes.vocab_size - 256 - len(SPECIAL_TOKENS))]
    Tokenizer([bytes([i]) for i in range(256)] + fillers).save(f"{root}/runs/bench/tokenizer")
    shape = (2 * sizes.rows, sizes.sequence_len + 1)
    rows = np.random.default_rng(0).integers(0, sizes.vocab_size, shape).astype(np.uint16)
    shards.write_plan(f"{root}/tokens", shards.Plan(1, sizes.sequence_len, sizes.vocab_size, False, inputs="random"))
    shards.write_block(f"{root}/tokens", 0, rows)
    return Stage(
        name="bench/base",
        storage=root,
        recipe=sizes.recipe(),
        schedule=schedule.base,
        steps=steps,
        source=TokenSource(f"{root}/tokens", f"{root}/tokens", max_val_rows=2),
        runtime=Runtime(device_rows=sizes.rows, compile=False),
    )


def apart(run: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a fresh process and return what it returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *args).result()


def stages(sizes: Sizes, steps: int, rounds: int) -> dict[str, float]:
    """Return the ratios between a stage without Ray, on one worker and on two."""
    turns = [{workers: apart(tokens_per_s, sizes, steps, workers) for workers in (0, 1, 2)} for _ in range(rounds)]
    best = {workers: max(turn[workers] for turn in turns) for workers in (0, 1, 2)}
    print(f"tok/s: bare {best[0]:,.0f}, one Ray worker {best[1]:,.0f}, two {best[2]:,.0f}", flush=True)
    return {"ray_vs_bare": best[1] / best[0], "two_workers_vs_one": best[2] / best[1]}


def main(depths: list[int], sizes: Sizes, steps: int, rounds: int) -> None:
    began = time.monotonic()
    for key, value in _ENVIRONMENT.items():  # for the processes that this one starts
        os.environ.setdefault(key, value)
    os.environ["RAYCHAT_DTYPE"] = "float32"
    os.environ.setdefault("RAY_worker_niceness", "0")  # else other work on this machine slows down Ray's workers alone
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raychat-compiled-") as cache:
        results["first_step_s"] = apart(first_step_s, sizes, cache)
        results["first_step_cached_s"] = apart(first_step_s, sizes, cache)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        of_depth = {depth: Sizes(depth, sizes.sequence_len, sizes.vocab_size, sizes.rows) for depth in depths}
        fractions = {f"d{depth}": apart(gemm_fractions, of, rounds) for depth, of in of_depth.items()}
    results["gemm_fraction"] = {name: round(eager, 3) for name, (eager, _) in fractions.items()}
    results["gemm_fraction_compiled"] = {name: round(compiled, 3) for name, (_, compiled) in fractions.items()}
    one_row = Sizes(sizes.depth, sizes.sequence_len, sizes.vocab_size, rows=1)
    results |= apart(in_bf16, one_row, 1)
    many_logits = replace(sizes, rows=-(-MANY_LOGITS // (LARGE_VOCAB * sizes.sequence_len)), vocab_size=LARGE_VOCAB)
    plain, fused = (apart(step_memory, many_logits, fused) for fused in (False, True))
    print(f"memory of a step: {plain[0] / 2**20:.0f} MiB, logits in parts {fused[0] / 2**20:.0f} MiB", flush=True)
    results["peak_memory_fused_vs_plain"], results["step_fused_vs_plain"] = fused[0] / plain[0], fused[1] / plain[1]
    results |= stages(sizes, steps, rounds)
    device = devices.default_device()
    on_cuda = device.type == "cuda"
    summary = {
        "benchmark": "train",
        "device": torch.cuda.get_device_name(device) if on_cuda else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "wall_s": round(time.monotonic() - began),
        **{key: round(value, 3) if isinstance(value, float) else value for key, value in results.items()},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 6], help="all but gemm_fraction: the first")
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=8, help="of a stage")
    parser.add_argument("--rounds", type=int, default=2, help="turns that count")
    given = parser.parse_args()
    main(
        given.depths,
        Sizes(given.depths[0], given.sequence_len, given.vocab_size, given.rows),
        max(given.steps, WARMUP_STEPS + 1),
        given.rounds,
    )

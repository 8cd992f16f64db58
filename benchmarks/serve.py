"""The chat service under load: with Ray Serve, without it, and answering one request at a time.

    .venv/bin/python benchmarks/serve.py [depth]

`jobs/serve.py` serves a random model of that depth (4), in processes of its own with one thread each; this process is
the client of all of them, on the same cores. Closed loop: every client sends a request when its last one has been
answered. Open loop: requests come at random times, as many as 60% of the closed loop's rate. The bare service and Ray
Serve take turns. The last line is JSON.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import torch

from raychat.checkpoint import Meta, save_checkpoint
from raychat.model.gpt import GPT, GPTConfig
from raychat.model.registry import architecture_of
from raychat.recipe import Recipe
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer
from raychat.train.scaling import from_depth

PROMPT_TOKENS, NEW_TOKENS = 32, 48
CLIENTS = (1, 8, 32, 128)
COMPARED = 32  # clients at which the services are compared
TURNS = 3  # measurements of each service there; the median counts
OPEN_LOAD, OPEN_REQUESTS = 0.6, 60
TIMEOUT_S = 300.0  # of one measurement
REPO = Path(__file__).parent.parent


class Load(NamedTuple):
    """What the clients saw."""

    tok_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    requests_s: float
    errors: int
    health_max_s: float  # the slowest answer of /health meanwhile


def main(depth: int = 4) -> None:
    """Measure all three services with a model of `depth` blocks and print what they do."""
    with tempfile.TemporaryDirectory() as home:
        vocab_size = write_model(home, depth)
        with server(home, "--cluster.workers", "0", "--max-sequences", "1") as url:
            single = report("one at a time", closed(url, vocab_size, COMPARED))
        with (
            server(home, "--cluster.workers", "0", "--max-sequences", "32") as bare,
            server(home, "--cluster.workers", "1", "--max-sequences", "32", "--max-replicas", "1") as ray,
        ):
            services = {"bare": bare, "ray": ray}
            loads = {name: {n: closed(url, vocab_size, n) for n in CLIENTS} for name, url in services.items()}
            turns: dict[str, list[Load]] = {name: [] for name in services}
            for _ in range(TURNS):
                for name, url in services.items():
                    turns[name].append(closed(url, vocab_size, COMPARED))
            for name in services:
                loads[name][COMPARED] = sorted(turns[name])[TURNS // 2]
            rate = OPEN_LOAD * loads["bare"][COMPARED].requests_s
            opened = {name: open_loop(url, vocab_size, rate) for name, url in services.items()}
    for name in services:
        for n, load in loads[name].items():
            report(f"{name}, {n} clients", load)
        report(f"{name}, open loop at {rate:.1f} requests/s", opened[name])
    ours = loads["bare"][COMPARED]
    everything = [single, *opened.values(), *(load for by_clients in loads.values() for load in by_clients.values())]
    result = {
        "benchmark": "serve",
        "device": f"cpu, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "depth": depth,
        "tokens": {"prompt": PROMPT_TOKENS, "new": NEW_TOKENS},
        "one_at_a_time_32": single._asdict(),
        "closed": {name: {n: load._asdict() for n, load in by.items()} for name, by in loads.items()},
        "open": {name: load._asdict() for name, load in opened.items()},
        "tok_s_32_vs_one_at_a_time": round(ours.tok_s / single.tok_s, 2),
        "ttft_p50_32_one_at_a_time_vs_ours": round(single.ttft_p50_s / ours.ttft_p50_s, 2),
        "serve_overhead_32": round(1 - loads["ray"][COMPARED].tok_s / ours.tok_s, 3),
        "health_max_s": max(load.health_max_s for load in everything),
        "errors": sum(load.errors for load in everything),
    }
    print(json.dumps(result))


def report(name: str, load: Load) -> Load:
    """Print a measurement and return it."""
    times = f"first token {load.ttft_p50_s:6.2f} s (p50) {load.ttft_p95_s:6.2f} s (p95)"
    rest = f"health at most {load.health_max_s:.2f} s  {load.errors} errors"
    print(f"{name:40} {load.tok_s:7.0f} tok/s  {times}  {rest}", flush=True)
    return load


def write_model(home: str, depth: int) -> int:
    """Write a chat checkpoint with random weights; return its vocabulary's size."""
    sizes = from_depth(depth, sequence_len=512).model()
    words = [f" {i:05x}".encode() for i in range(sizes["vocab_size"] - 256 - len(SPECIAL_TOKENS))]
    model = GPT(GPTConfig(**sizes))
    model.init_weights()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)  # zero at first: every token would be as likely as any other
    recipe = Recipe(model=architecture_of(model), batch_tokens=2**14, lr_scale=1.0)
    tokenizer = Tokenizer([*(bytes([i]) for i in range(256)), *words])
    save_checkpoint(f"{home}/runs/random/sft", model, None, tokenizer, Meta(1, recipe))
    return sizes["vocab_size"]


@contextlib.contextmanager
def server(home: str, *options: str) -> Iterator[str]:
    """Serve the storage by `jobs/serve.py` in a process of its own; yield the URL.

    What the process and Ray's workers print goes to a file: it would drown the figures.

    Raises:
        RuntimeError: the process has ended before it served.
    """
    command = [sys.executable, "jobs/serve.py", "--port", "0", "--cluster.storage-path", home, *options]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    with (
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            while not (found := re.search(r"chat at (http://[\d.:]+)", Path(log.name).read_text())):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} has ended: {Path(log.name).read_text()}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)


def closed(url: str, vocab_size: int, clients: int) -> Load:
    """Measure clients that each send a request when the last one was answered; at least 32 requests, all together."""
    rounds = max(1, -(-32 // clients)) if clients > 1 else 8

    async def client(session: aiohttp.ClientSession) -> list[Any]:
        return [await request(session, url, vocab_size) for _ in range(rounds)]

    async def run() -> Load:
        async with _session() as session:
            await request(session, url, vocab_size)  # the connection, the caches
            start = time.perf_counter()
            async with health(session, url) as seconds:
                answers = await asyncio.wait_for(asyncio.gather(*(client(session) for _ in range(clients))), TIMEOUT_S)
            return summary([answer for mine in answers for answer in mine], time.perf_counter() - start, seconds)

    return asyncio.run(run())


def open_loop(url: str, vocab_size: int, rate: float) -> Load:
    """Measure requests that come at random times, `rate` a second."""
    times = random.Random(0)

    async def run() -> Load:
        async with _session() as session:
            start, tasks = time.perf_counter(), []
            async with health(session, url) as seconds:
                for _ in range(OPEN_REQUESTS):
                    tasks.append(asyncio.create_task(request(session, url, vocab_size)))
                    await asyncio.sleep(times.expovariate(rate))
                answers = await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT_S)
            return summary(answers, time.perf_counter() - start, seconds)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def health(session: aiohttp.ClientSession, url: str) -> AsyncIterator[list[float]]:
    """Ask for /health five times a second while the block runs; yield the seconds of the answers so far."""
    seconds: list[float] = []

    async def ask() -> None:
        while True:
            start = time.perf_counter()
            async with session.get(f"{url}/health") as response:
                response.raise_for_status()
            seconds.append(time.perf_counter() - start)
            await asyncio.sleep(0.2)

    asking = asyncio.create_task(ask())
    try:
        yield seconds
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking  # raises what /health has failed with


async def request(session: aiohttp.ClientSession, url: str, vocab_size: int) -> tuple[float, int] | None:
    """Stream one answer; return the seconds to its first text and its number of tokens, None when it fails."""
    body = {
        "prompt": [random.randrange(256, vocab_size - len(SPECIAL_TOKENS)) for _ in range(PROMPT_TOKENS)],
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, last = time.perf_counter(), 0.0, b""
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first, last = first or time.perf_counter() - start, line
            usage = json.loads(last.removeprefix(b"data: "))["usage"]
            return (first, usage["completion_tokens"]) if response.status == 200 else None
    except (aiohttp.ClientError, ValueError, KeyError, TypeError) as e:
        print(f"a request failed: {e!r}", flush=True)
        return None


def summary(answers: list[tuple[float, int] | None], elapsed_s: float, health_s: list[float]) -> Load:
    """Return what the requests saw, all together."""
    good = [answer for answer in answers if answer is not None]
    firsts = sorted(first for first, _ in good)
    tokens = sum(tokens for _, tokens in good)
    p95 = firsts[int(0.95 * (len(firsts) - 1))]
    return Load(
        round(tokens / elapsed_s, 1),
        round(statistics.median(firsts), 3),
        round(p95, 3),
        round(len(good) / elapsed_s, 3),
        len(answers) - len(good),
        round(max(health_s), 3),
    )


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

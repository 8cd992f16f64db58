"""Measure how fast the engine answers: time to first token, time per token, and the share of the machine's limit.

python jobs/infer_bench.py --depth 4  (a model of this depth with random weights)

python jobs/infer_bench.py --run d20 --stage sft --batch-sizes 1 8 64

At every batch size that many requests arrive at once. The limit is the time to read the model's weights, or to multiply
by them (raychat/engine/limit.py), measured in turns with the engine. The last line is JSON.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raychat.cluster import Cluster
from raychat.settings import at_least

if TYPE_CHECKING:
    import numpy as np

    from raychat.engine.engine import Engine
    from raychat.engine.sampling import SamplingParams
    from raychat.model.base import Model
    from raychat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Args:
    run: str | None = None  # name of the run; None = the one that wrote a chat checkpoint last
    stage: Literal["rl", "sft", "mid", "base"] | None = None  # which model of the run; None = its latest, but not base
    depth: int | None = None  # measure a model of this depth with random weights; None = the run's checkpoint
    batch_sizes: tuple[int, ...] = (1, 4, 16, 32)  # requests at once, one line of the table each
    prompt_tokens: int = 128  # length of each prompt; no two prompts share a beginning
    new_tokens: int = 64  # tokens that each request gets, at least
    temperature: float = 0.7  # of sampling; 0 = always the most likely token
    top_k: int | None = 50  # sample only among the k most likely tokens; None = all
    rounds: int = 3  # measurements of each batch size, after one that does not count
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here

    def __post_init__(self) -> None:
        at_least(self, depth=1, batch_sizes=1, prompt_tokens=1, new_tokens=2, temperature=0, top_k=1, rounds=1)


class Round(NamedTuple):
    """What requests that arrived at once took."""

    first_s: list[float]  # of each: from its arrival to its first token
    step_s: float  # median of the steps in which all of them decoded
    limit_s: float  # of such a step


def run(args: Args) -> dict[str, Any]:
    """Measure, print a table and JSON, and return what JSON says.

    Raises:
        ValueError: there is no such checkpoint, a sampling parameter is out of its range, or the context is too short.
    """
    import torch

    from raychat.engine.limit import activation_dtype

    name, model, tokenizer = _load(args)
    device = next(model.parameters()).device
    print(f"{'batch':>5} {'TTFT ms':>9} {'prompt tok/s':>13} {'TPOT ms':>9} {'tok/s':>9} {'of the limit':>13}")
    batches = {}
    for batch in args.batch_sizes:
        batches[str(batch)] = f = _summary(_measure(model, tokenizer, batch, args), args.prompt_tokens)
        print(f"{batch:5} {f['ttft_ms']:9.1f} {f['prompt_tok_s']:13.0f} {f['tpot_ms']:9.2f} {f['tok_s']:9.1f}", end="")
        print(f"{f['fraction_of_limit']:14.1%}", flush=True)
    result = {
        "benchmark": "infer",
        "model": name,
        "num_params": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(activation_dtype(model)).removeprefix("torch."),
        "torch": torch.__version__,
        "prompt_tokens": args.prompt_tokens,
        "batches": batches,
    }
    print(json.dumps(result))
    return result


def _load(args: Args) -> "tuple[str, Model, Tokenizer]":
    """Return the model to measure with its name, on this process's device."""
    from raychat import checkpoint
    from raychat.device import compute_dtype, default_device
    from raychat.model.registry import architecture, build
    from raychat.runs import find_checkpoint
    from raychat.train.scaling import from_depth

    device = default_device()
    if args.depth is None:
        found = find_checkpoint(args.cluster.storage(), args.run, args.stage)
        model, _ = checkpoint.load_model(found.path, device)
        return found.id, model.eval(), checkpoint.load_tokenizer(found.path)
    if args.run or args.stage:
        raise ValueError("depth means a model with random weights; leave it out to measure a run's checkpoint")
    sizes = from_depth(args.depth)
    model = build(architecture("GPT", **sizes.model()))
    model.init_weights()
    return f"d{args.depth}, random", model.place(device, compute_dtype(device)).eval(), _tokenizer(sizes.vocab_size)


def _tokenizer(vocab_size: int) -> "Tokenizer":
    """Return a tokenizer of this size: single bytes, then pairs of bytes in order."""
    from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer

    singles = [bytes([byte]) for byte in range(256)]
    pairs = [first + second for first in singles for second in singles]
    return Tokenizer((singles + pairs)[: vocab_size - len(SPECIAL_TOKENS)])


def _measure(model: "Model", tokenizer: "Tokenizer", batch: int, args: Args) -> list[Round]:
    """Measure `args.rounds` rounds of `batch` requests, after one that does not count."""
    import numpy as np

    from raychat.engine.engine import Engine
    from raychat.engine.limit import activation_dtype, measure_speed
    from raychat.engine.sampling import SamplingParams

    rng = np.random.default_rng(batch)
    device = next(model.parameters()).device
    engine = Engine(model, tokenizer, max_sequences=batch, tool=lambda expression: None)
    most = engine.context - args.prompt_tokens
    if most < args.new_tokens:
        raise ValueError(
            f"{args.prompt_tokens} prompt tokens and {args.new_tokens} new ones do not fit into the model's context; "
            f"expected at most {engine.context} in all"
        )
    params = SamplingParams(args.temperature, args.top_k, max_new_tokens=most, seed=0, stop_ids=())
    rounds = []
    for _ in range(args.rounds + 1):
        prompts = rng.integers(0, len(tokenizer.tokens), (batch, args.prompt_tokens))
        limit_s = measure_speed(device, activation_dtype(model)).step_limit_s(model, batch)
        rounds.append(Round(*_serve(engine, prompts, params, args.new_tokens), limit_s))
    return rounds[1:]


def _serve(
    engine: "Engine", prompts: "np.ndarray", params: "SamplingParams", new_tokens: int
) -> tuple[list[float], float]:
    """Answer prompts (B, T) until each has `new_tokens`; return each one's time to first token and the median step."""
    start = time.perf_counter()
    ids = [engine.add(prompt, params) for prompt in prompts]
    first_s: dict[int, float] = {}
    steps: list[float] = []  # in which all requests decode
    while len(steps) < new_tokens - 1:
        all_decode, begin = len(first_s) == len(ids), time.perf_counter()
        events = engine.step()
        now = time.perf_counter()
        if all_decode:
            steps.append(now - begin)
        for event in events:
            first_s.setdefault(event.id, now - start)
            if event.finish and len(steps) < new_tokens - 1:
                raise ValueError(
                    f"a request filled the context of {engine.context} tokens while others read their prompts; "
                    "take fewer requests, prompt tokens or new tokens"
                )
    for id in ids:
        engine.cancel(id)
    return list(first_s.values()), median(steps)


def _summary(rounds: list[Round], prompt_tokens: int) -> dict[str, float]:
    """Return the medians over the rounds, rounded; the share of the limit is the best round's."""
    batch = len(rounds[0].first_s)
    limit_s = min(r.limit_s for r in rounds)

    def over_rounds(figure: Callable[[Round], float], digits: int) -> float:
        return round(median(map(figure, rounds)), digits)

    return {
        "ttft_ms": over_rounds(lambda r: 1000 * median(r.first_s), 2),
        "prompt_tok_s": over_rounds(lambda r: batch * prompt_tokens / max(r.first_s), 1),
        "tpot_ms": over_rounds(lambda r: 1000 * r.step_s, 3),
        "tok_s": over_rounds(lambda r: batch / r.step_s, 1),
        "limit_tok_s": round(batch / limit_s, 1),
        "fraction_of_limit": round(limit_s / min(r.step_s for r in rounds), 4),
    }


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

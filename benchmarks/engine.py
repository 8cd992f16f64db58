"""The engine against the machine's limit, and against a static-batch engine in the style of the peers.

    .venv/bin/python benchmarks/engine.py [--dtypes float32 bfloat16] [--depths 4 8]

The static engine reads one prompt, computes all logits, copies its cache to n rows and decodes them to the longest, as
the generate loops of nanochat and transformers do. Both engines hold the same random weights in one process and take
turns; figures are the best turns. On a CPU everything runs on one thread. The first dtype is measured whole, of others
a decode step of the first depth at two batch sizes. The last line is JSON:

    decode_fraction_of_limit   seconds to read the weights, or to multiply by them, over those of a decode step
    decode_vs_static           tokens per second of decoding, ours over static
    rollout_vs_static          seconds for prompts x samples of very different lengths, static over ours
    prefill_vs_all_logits      tokens per second of reading prompts, ours over static
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raychat import device as devices
from raychat.engine.engine import Engine
from raychat.engine.limit import measure_speed
from raychat.engine.sampling import SamplingParams
from raychat.model.attention import rotate
from raychat.model.gpt import GATE_CHANNELS, GPT, SMEAR_CHANNELS, GPTConfig, norm
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer
from raychat.train.scaling import from_depth

VOCAB_SIZE = 32768
CONTEXT = 1024
PROMPT_TOKENS = 64
BATCHES = (1, 4, 16, 32)
OTHER_BATCHES, OTHER_ROUNDS = (1, 16), 1  # with the dtypes after the first: a CPU without bf16 products is slow
ROUNDS, STEPS = 5, 6  # turns that each contender takes, and decode steps of a turn
PARAMS = SamplingParams(temperature=1.0, top_k=50, stop_ids=(), seed=1)
PROMPTS, SAMPLES, MEAN_TOKENS, MOST_TOKENS = 4, 16, 48, 256  # of the rollouts


class StaticEngine:
    """One prompt, n rows, one step for all of them until the last one ends."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.keys: list[Tensor] = []  # of each layer: (B, S, K, D)
        self.values: list[Tensor] = []
        self.before: Tensor | None = None  # (B, 1, C), the embedding before the next token, for the smear
        self.length = 0

    def prefill(self, prompt: list[int], rows: int, room: int) -> Tensor:
        """Read a prompt in one row and copy its cache to all rows; return the logits (rows, V)."""
        config = self.model.config
        shape = (1, len(prompt) + room, config.n_kv_head, config.head_dim)
        like = self.model.wte.weight
        self.keys, self.values = ([like.new_empty(shape) for _ in range(config.n_layer)] for _ in range(2))
        self.before, self.length = None, 0
        logits = self.forward(torch.tensor([prompt], device=like.device))[:, -1]
        self.keys, self.values = (
            [x.expand(rows, -1, -1, -1).contiguous() for x in xs] for xs in (self.keys, self.values)
        )
        if self.before is not None:
            self.before = self.before.expand(rows, -1, -1)
        return logits.expand(rows, -1)

    def forward(self, idx: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the next tokens (B, T) of all rows."""
        model, config, T = self.model, self.model.config, idx.size(1)
        cos, sin = model._rotary_table(config.sequence_len, idx.device)
        rotary = cos[self.length : self.length + T], sin[self.length : self.length + T]
        x = norm(model.wte(idx))
        newest = x[:, -1:]
        before = torch.zeros_like(newest) if self.before is None else self.before
        before = torch.cat((before, x[:, :-1]), 1)
        self.before = newest
        x = x + model.smear_lambda.to(x.dtype) * torch.sigmoid(model.smear_gate(x[..., :SMEAR_CHANNELS])) * before
        x0 = middle = x
        for i, block in enumerate(model.blocks):
            x = model.resid_scale[i].to(x.dtype) * x + model.x0_scale[i].to(x.dtype) * x0
            x = x + self._attend(i, norm(x), idx, rotary)
            x = x + linear(F.relu(linear(norm(x), block.mlp.fc)).square(), block.mlp.proj)
            middle = x if i == config.n_layer // 2 else middle
        self.length += T
        logits = linear(norm(x - model.backout_lambda.to(x.dtype) * middle), model.lm_head).float()
        return config.softcap * torch.tanh(logits / config.softcap)

    def _attend(self, i: int, x: Tensor, idx: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        attn, config, (B, T, _) = self.model.blocks[i].attn, self.model.config, x.shape
        q, k, v = (linear(x, project).view(B, T, -1, config.head_dim) for project in (attn.q, attn.k, attn.v))
        if attn.ve_gate is not None:
            gate = 3 * torch.sigmoid(attn.ve_gate(x[..., :GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * self.model.value_embeds[str(i)](idx).view(v.shape)
        q, k = (config.qk_scale * norm(rotate(z, *rotary)) for z in (q, k))
        end = self.length + T
        self.keys[i][:, self.length : end], self.values[i][:, self.length : end] = k, v
        seen = slice(max(0, end - attn.window - 1) if T == 1 else 0, end)
        q, k, v = (z.transpose(1, 2) for z in (q, self.keys[i][:, seen], self.values[i][:, seen]))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return linear(y.transpose(1, 2).reshape(B, T, -1), attn.proj)

    def step(self, logits: Tensor) -> tuple[list[int], Tensor]:
        """Sample a token for every row from logits (B, V), read them; return them and the logits after them."""
        values, indices = logits.topk(50)
        choice = torch.multinomial((values / PARAMS.temperature).softmax(-1), 1)
        tokens = indices.gather(-1, choice)
        return tokens[:, 0].tolist(), self.forward(tokens)[:, -1]

    def rollout(self, prompt: list[int], lengths: list[int]) -> None:
        """Sample rows of the given lengths; rows that have ended are computed until the last one ends."""
        logits = self.prefill(prompt, len(lengths), max(lengths))
        rows: list[list[int]] = [[] for _ in lengths]
        for _ in range(max(lengths)):
            tokens, logits = self.step(logits)
            for row, token, length in zip(rows, tokens, lengths, strict=True):
                if len(row) < length:
                    row.append(token)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Multiply by the weight as it is; the engine's own copies are no concern of the static engine."""
    return F.linear(x, layer.weight.to(x.dtype))


def interleave(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Let the contenders take turns; return the least of what each returned, after a turn to warm up."""
    turns = [{name: run() for name, run in contenders.items()} for _ in range(rounds + 1)]
    return {name: min(turn[name] for turn in turns[1:]) for name in contenders}


class Bench:
    """Both engines on one random model."""

    def __init__(self, depth: int, dtype: torch.dtype, device: torch.device) -> None:
        sizes = from_depth(depth)
        config = GPTConfig(
            sequence_len=CONTEXT,
            vocab_size=VOCAB_SIZE,
            n_layer=depth,
            n_head=sizes.n_head,
            n_kv_head=sizes.n_head,
            n_embd=sizes.n_embd,
        )
        self.model = GPT(config)
        self.model.init_weights()
        with torch.no_grad():
            for p in self.model.parameters():
                if not p.any():  # a projection that begins at zero; denormal or zero products would be another speed
                    p.normal_(std=0.02)
        self.model.place(device, dtype).eval()
        self.device, self.dtype = device, dtype
        fillers = [i.to_bytes(3, "big") for i in range(VOCAB_SIZE - 256 - len(SPECIAL_TOKENS))]
        self.tokenizer = Tokenizer([bytes([i]) for i in range(256)] + fillers)
        self.random = np.random.default_rng(0)

    def prompt(self, length: int) -> list[int]:
        return self.random.integers(0, VOCAB_SIZE, length).tolist()

    def engine(self, batch: int) -> Engine:
        return Engine(self.model, self.tokenizer, max_sequences=batch, tool=lambda _: None)

    def timed(self, run: Callable[[], object]) -> float:
        devices.synchronize(self.device)
        start = time.perf_counter()
        run()
        devices.synchronize(self.device)
        return time.perf_counter() - start

    def decode(self, batch: int, rounds: int) -> dict[str, float]:
        """Return seconds of a decode step: limit, ours, static."""
        engine, static, prompt = self.engine(batch), StaticEngine(self.model), self.prompt(PROMPT_TOKENS)
        for i in range(batch):
            engine.add(prompt, replace(PARAMS, seed=i, max_new_tokens=CONTEXT))
        while engine.stats().generated_tokens < 2 * batch:
            engine.step()
        with torch.inference_mode():
            logits = static.prefill(prompt, batch, CONTEXT - PROMPT_TOKENS)

        def ours() -> None:
            for _ in range(STEPS):
                assert len(engine.step()) == batch

        @torch.inference_mode()
        def peer() -> None:
            nonlocal logits
            for _ in range(STEPS):
                _, logits = static.step(logits)

        return interleave(
            {
                "limit": lambda: measure_speed(self.device, self.dtype).step_limit_s(self.model, batch),
                "ours": lambda: self.timed(ours) / STEPS,
                "static": lambda: self.timed(peer) / STEPS,
            },
            rounds,
        )

    def rollouts(self) -> dict[str, float]:
        """Return seconds for samples whose lengths are drawn from an exponential distribution, as answers' are."""
        prompts = [self.prompt(PROMPT_TOKENS) for _ in range(PROMPTS)]
        drawn = self.random.exponential(MEAN_TOKENS, (PROMPTS, SAMPLES))
        lengths = np.clip(drawn, 1, MOST_TOKENS).astype(int).tolist()
        engine, static = self.engine(PROMPTS * SAMPLES // 2), StaticEngine(self.model)

        def ours() -> None:
            requests = [(prompt, n) for prompt, ns in zip(prompts, lengths, strict=True) for n in ns]
            params = [replace(PARAMS, seed=i, max_new_tokens=n) for i, (_, n) in enumerate(requests)]
            engine.generate([prompt for prompt, _ in requests], params)

        @torch.inference_mode()
        def peer() -> None:
            for prompt, ns in zip(prompts, lengths, strict=True):
                static.rollout(prompt, ns)

        return interleave({"ours": lambda: self.timed(ours), "static": lambda: self.timed(peer)}, rounds=3)

    def prefill(self) -> dict[str, float]:
        """Return seconds to read prompts of different lengths up to their first new token."""
        lengths = (100, 180, 260, 340)
        engine, static = self.engine(len(lengths)), StaticEngine(self.model)
        params = replace(PARAMS, max_new_tokens=1)

        @torch.inference_mode()
        def peer(prompts: list[list[int]]) -> None:
            for prompt in prompts:
                static.prefill(prompt, 1, 1)

        def turn(run: Callable[[list[list[int]]], object]) -> float:
            prompts = [self.prompt(length) for length in lengths]  # new ones, so that no prefix is reused
            return self.timed(lambda: run(prompts))

        contenders = {"ours": lambda: turn(lambda p: engine.generate(p, params)), "static": lambda: turn(peer)}
        return interleave(contenders, ROUNDS)


def decode(bench: Bench, name: str, batches: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Measure decode steps and print them; return the figures of the summary by batch size."""
    fractions, ratios = {}, {}
    for batch in batches:
        seconds = bench.decode(batch, rounds)
        fractions[str(batch)] = round(seconds["limit"] / seconds["ours"], 3)
        ratios[str(batch)] = round(seconds["static"] / seconds["ours"], 3)
        milliseconds = ", ".join(f"{who} {1000 * s:.2f}" for who, s in seconds.items())
        print(f"{name} batch {batch}, ms a step: {milliseconds}", flush=True)
    return {"decode_fraction_of_limit": fractions, "decode_vs_static": ratios}


def main(depths: list[int], dtypes: list[torch.dtype]) -> None:
    device, dtype = devices.default_device(), dtypes[0]
    if device.type == "cpu":
        torch.set_num_threads(1)
    runs = [(f"d{depth}", depth, dtype, BATCHES, ROUNDS) for depth in depths]
    for other in dtypes[1:]:
        name = f"d{depths[0]} {str(other).removeprefix('torch.')}"
        runs.append((name, depths[0], other, OTHER_BATCHES, OTHER_ROUNDS))
    results: dict[str, dict[str, dict[str, float]]] = {"decode_fraction_of_limit": {}, "decode_vs_static": {}}
    for name, depth, of, batches, rounds in runs:
        for figure, by_batch in decode(Bench(depth, of, device), name, batches, rounds).items():
            results[figure][name] = by_batch
    bench = Bench(depths[0], dtype, device)
    rollouts, prefill = bench.rollouts(), bench.prefill()
    print(f"rollouts of d{depths[0]}: ours {rollouts['ours']:.2f} s, static {rollouts['static']:.2f} s")
    print(f"prefill of d{depths[0]}: ours {1000 * prefill['ours']:.1f} ms, static {1000 * prefill['static']:.1f} ms")
    on_cuda = device.type == "cuda"
    summary = {
        "benchmark": "engine",
        "device": torch.cuda.get_device_name(device) if on_cuda else f"cpu, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        **results,
        "rollout_vs_static": round(rollouts["static"] / rollouts["ours"], 2),
        "prefill_vs_all_logits": round(prefill["static"] / prefill["ours"], 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dtypes", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    settings = parser.parse_args()
    main(settings.depths, [getattr(torch, name) for name in settings.dtypes])

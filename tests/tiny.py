"""Small real models for the tests of engine and serving: a random one, and one that follows a script."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raychat.model import registry
from raychat.model.attention import rotary_table
from raychat.model.base import Model
from raychat.model.cache import Chunk, KVCache
from raychat.model.gpt import GPT, GPTConfig
from raychat.model.gpt2 import GPT2, GPT2Config
from raychat.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without merges: the 256 bytes and the special tokens."""
    return Tokenizer([bytes([i]) for i in range(256)])


def random_model(seed: int = 0, sequence_len: int = 160) -> GPT:
    """A GPT of three layers with sliding windows, grouped queries and no weight left at zero."""
    config = GPTConfig(
        sequence_len=sequence_len, vocab_size=265, n_layer=3, n_head=4, n_kv_head=2, n_embd=64, window_pattern="SL"
    )
    return _random(config, seed)


def first_generation(seed: int = 0, sequence_len: int = 160) -> GPT:
    """The same of the first generation, without windows, smear and the other later parts."""
    sizes = {"vocab_size": 265, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 64}
    return _random(GPTConfig.october_2025(sequence_len=sequence_len, **sizes), seed)


def gpt2(seed: int = 0, sequence_len: int = 160) -> GPT2:
    """A GPT-2 of three layers with no weight left at zero."""
    return _random(GPT2Config(sequence_len=sequence_len, vocab_size=265, n_layer=3, n_head=4, n_embd=64), seed)


def _random(config: Any, seed: int) -> Any:
    model = registry.build({"class": type(config).__name__.removesuffix("Config"), **dataclasses.asdict(config)})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.15 if p.dim() > 1 else 0.5, generator=generator)
    return model.eval()


def on_fake_gpu(config: GPTConfig) -> GPT:
    """A model as it is placed on a GPU, embeddings in bf16; to be called under fake tensors."""
    device = torch.device("cuda")
    with device:
        model = GPT(config)
    for embedding in (model.wte, *model.value_embeds.values()):
        embedding.weight = nn.Parameter(embedding.weight.detach().to(torch.bfloat16))
    model._rotary = rotary_table(config.sequence_len, config.head_dim, config.rotary_base, device)
    return model


def scripted_model(scripts: list[list[int]], sequence_len: int = 128, vocab_size: int = 265) -> GPT:
    """A GPT that continues every token with the one that follows it in a script (no token twice), by its weights.

    The blocks add nothing, embeddings are one-hot, and the head maps each token to its successor.
    """
    width = -(-vocab_size // 64) * 64  # the padded vocabulary
    heads = width // 64
    config = GPTConfig(
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        n_layer=1,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        smear=False,
    )
    model = GPT(config)
    model.init_weights()
    with torch.no_grad():
        model.wte.weight.copy_(torch.eye(width))
        model.lm_head.weight.zero_()
        for script in scripts:
            for token, successor in pairwise(script):
                model.lm_head.weight[successor, token] = 2.0
    return model.eval()


@torch.inference_mode()
def extend(model: Model, cache: KVCache, tokens: list[int], chunks: dict[int, list[int]]) -> Tensor:
    """Read one token into each of a cache's first slots and chunks into others, by slot; return the logits (N, V)."""
    past = cache.begin(np.array(tokens, dtype=np.int64), [Chunk(slot, chunk) for slot, chunk in chunks.items()])
    logits = model.logits(model.hidden(past.ids[None], past))[0]
    past.finish()
    return logits


def varlen_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    offsets: Tensor,
    *_: int,
    seqused_k: Tensor | None = None,
    num_splits: int | None = None,
    **settings: Any,
) -> Tensor:
    """Attend as PyTorch's kernel does, one sequence after the other.

    Over a cache it must be asked for one split: else a sequence's sums depend on what else is in the batch.
    """
    assert num_splits == (None if seqused_k is None else 1)
    out, (window, _) = torch.empty_like(q), settings["window_size"]
    for i, seen in enumerate((offsets.diff() if seqused_k is None else seqused_k).tolist()):
        rows, entries = slice(bounds[i], bounds[i + 1]), slice(offsets[i], offsets[i] + seen)
        T = int(bounds[i + 1] - bounds[i])
        keys, values = (x[entries].repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
        distance = torch.arange(seen - T, seen)[:, None] - torch.arange(seen)
        sees = (distance >= 0) & ((distance <= window) | (window < 0))
        scores = torch.einsum("qhd,khd->hqk", q[rows], keys) * q.size(-1) ** -0.5
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, values)
    return out

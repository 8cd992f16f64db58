"""GPT-2: the model of nanoGPT's lineage.

Notation: B batch, T sequence, C width (n_embd), L layers, H heads, D head size, V vocabulary.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; rates and schedule of nanoGPT.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raychat.model import flops
from raychat.model.attention import attend, use_fastest_kernel
from raychat.model.base import AdamW, Model, Muon, Past, padded
from raychat.model.cache import KVCache
from raychat.model.linear import Linear
from raychat.model.packed import PackedWeights

INIT_STD = 0.02
DECAYED = AdamW(6e-4, (0.9, 0.95), weight_decay=0.1, eps=1e-8)  # matrices and embeddings
VECTORS = DECAYED._replace(weight_decay=0.0)  # biases and LayerNorm's weights
SIZES = {  # layers, heads, width
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}


@dataclass(frozen=True)
class GPT2Config:
    """The architecture. The defaults are the smallest of the four published sizes (`SIZES`)."""

    sequence_len: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    bias: bool = True  # in linear layers and LayerNorm
    dropout: float = 0.0  # in training, of embeddings, attention's and the MLP's outputs and attention weights

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 up to, but not, 1")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return padded(self.vocab_size)


class LayerNorm(nn.Module):
    """LayerNorm whose bias may be left out; computed in the activations' dtype."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, 1e-5)


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, config.bias)
        self.proj = Linear(config.n_embd, config.n_embd, config.bias)

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        """x: (B, T, C) normalised -> (B, T, C)."""
        B, T, _ = x.shape
        config = self.config
        q, k, v = self.qkv(x).view(B, T, 3, config.n_head, config.head_dim).unbind(2)
        if past is not None:
            y = past.attend(self.layer, q[0], k[0], v[0])
        elif self.training and config.dropout:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=config.dropout, is_causal=True).transpose(1, 2)
        else:
            y = attend(q, k, v, T)
        return self.proj(y.reshape(B, T, -1))


class GPT2MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.proj = Linear(4 * config.n_embd, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1, self.ln_2 = (LayerNorm(config.n_embd, config.bias) for _ in range(2))
        self.attn = GPT2Attention(config, layer)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        x = x + F.dropout(self.attn(self.ln_1(x), past), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT2(Model):
    """Token ids in, logits out; the embedding is the head, too."""

    max_grad_norm = 1.0

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.sequence_len, config.n_embd)
        self.blocks = nn.ModuleList(GPT2Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        self._dtype = torch.float32  # of the activations
        self._head: PackedWeights | None = None  # what inference reads in place of wte

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Draw the initial weights as GPT-2 does: std 0.02, 0.02 / sqrt(2 L) where a layer writes its residual."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 1:
                p.fill_(float(".ln_" in f".{name}" and name.endswith("weight")))
                continue
            std = INIT_STD / math.sqrt(2 * self.config.n_layer) if name.endswith("proj.weight") else INIT_STD
            p.copy_(torch.empty(p.shape).normal_(std=std, generator=generator))

    def cropped(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        T = self.config.sequence_len
        return {name: tensor[:T] if name == "wpe.weight" else tensor for name, tensor in weights.items()}

    def place(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move to a device and set the activations' dtype; all weights stay fp32, as the embedding is the head."""
        self.to(device)
        use_fastest_kernel(device)
        self._dtype = dtype
        return self

    def pack(self) -> None:
        self._head = PackedWeights([self.wte.weight])
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    def new_cache(self, num_slots: int, max_len: int | None = None) -> KVCache:
        config = self.config
        max_len = max_len or config.sequence_len
        like = torch.empty(0, dtype=self._dtype, device=self.device)
        windows = [config.sequence_len] * config.n_layer
        return KVCache(windows, config.n_head, config.head_dim, num_slots, max_len, like=like)

    def flops_per_token(self) -> int:
        """Count the FLOPs of forward and backward per token: 6 per matmul weight, the head's too, 12 C T per layer."""
        config = self.config
        weights = flops.matmul_weights(self) + self.wte.weight.numel()
        return 6 * weights + 12 * config.n_layer * config.n_embd * config.sequence_len

    def optimizer_rates(self) -> dict[str, AdamW | Muon]:
        return {name: DECAYED if p.dim() > 1 else VECTORS for name, p in self.named_parameters()}

    def forward(self, idx: Tensor) -> Tensor:
        return self.logits(self.hidden(idx))

    def logits(self, x: Tensor) -> Tensor:
        if self._head is not None and not torch.is_grad_enabled():
            logits = self._head(x)
        else:
            logits = F.linear(x, self.wte.weight.to(x.dtype))
        return logits[..., : self.config.vocab_size].float()

    def hidden(self, idx: Tensor, past: Past | None = None) -> Tensor:
        positions = torch.arange(idx.size(1), device=idx.device) if past is None else past.positions
        x = (self.wte(idx) + self.wpe(positions)).to(self._dtype)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, past)
        out: Tensor = self.ln_f(x)
        return out

"""The GPT: one class for the nanochat lineage, whose generations differ only in the config.

Notation: B batch, T sequence, C width (n_embd), L layers, H query heads, K key/value heads, D head size, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raychat.model import flops
from raychat.model.attention import attend, rotary_table, rotate, use_fastest_kernel
from raychat.model.base import AdamW, Model, Muon, Past, padded
from raychat.model.cache import KVCache
from raychat.model.linear import Linear
from raychat.model.packed import PackedWeights
from raychat.model.rates import rates_of

SMEAR_CHANNELS = 24  # channels of the embedding that gate the smear
GATE_CHANNELS = 12  # channels of the residual stream that gate the value embeddings
SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")  # that both generations have


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. The defaults are the current generation; `october_2025` is the first one."""

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"  # tiled over the layers, S = a quarter of the context, L = all; the last layer is L
    rotary_base: float = 100_000.0
    qk_scale: float = 1.2
    value_embeddings: bool = True
    residual_scalars: bool = True  # x = r_i x + s_i x0 before every layer
    smear: bool = True
    backout: bool = True
    softcap: float = 15.0

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(f"n_embd {self.n_embd} over n_head {self.n_head} is not an even head size")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(f"window_pattern {self.window_pattern!r}: expected letters S and L, such as SSSL")

    @classmethod
    def october_2025(cls, **sizes: int) -> "GPTConfig":
        """Return the first generation's architecture (public d20 and d32 checkpoints, `nanochat` in transformers)."""
        return cls(
            **sizes,
            window_pattern="L",
            rotary_base=10_000.0,
            qk_scale=1.0,
            value_embeddings=False,
            residual_scalars=False,
            smear=False,
            backout=False,
        )

    def sizes(self) -> dict[str, int]:
        """Return the sizes by their names, as `october_2025` takes them."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return padded(self.vocab_size)

    def windows(self) -> list[int]:
        """Return each layer's window: positions to the left that a query sees besides its own."""
        short = -(-self.sequence_len // 4 // 128) * 128
        pattern = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer - 1)] + ["L"]
        return [min(short, self.sequence_len) if letter == "S" else self.sequence_len for letter in pattern]

    def has_value_embedding(self, layer: int) -> bool:
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2


def norm(x: Tensor) -> Tensor:
    """RMSNorm without learned weight (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows()[layer]
        width = config.n_kv_head * config.head_dim
        self.q = Linear(config.n_embd, config.n_embd)
        self.k = Linear(config.n_embd, width)
        self.v = Linear(config.n_embd, width)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.ve_gate = Linear(GATE_CHANNELS, config.n_kv_head) if config.has_value_embedding(layer) else None
        self.packed: PackedWeights | None = None  # q, k, v and gate as one

    def pack(self) -> None:
        projections = [self.q, self.k, self.v, *([self.ve_gate] if self.ve_gate else [])]
        self.packed = PackedWeights([projection.weight for projection in projections])

    def forward(self, x: Tensor, ve: Tensor | None, rotary: tuple[Tensor, Tensor], past: Past | None) -> Tensor:
        """x: (B, T, C) normalised; ve: (B, T, K * D) or None -> (B, T, C)."""
        B, T, _ = x.shape
        config = self.config
        qk, v, gate = self._project(x)
        v = v.view(B, T, config.n_kv_head, config.head_dim)
        if gate is not None and ve is not None:
            v = torch.addcmul(v, torch.sigmoid(gate).unsqueeze(-1), ve.view(v.shape).to(v.dtype), value=3)
        qk = config.qk_scale * norm(rotate(qk.view(B, T, -1, config.head_dim), *rotary))
        q, k = qk.split((config.n_head, config.n_kv_head), dim=2)
        if past is None:
            y = attend(q, k, v, self.window)
        else:
            y = past.attend(self.layer, q[0], k[0], v[0])
        return self.proj(y.reshape(B, T, -1))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return queries beside keys (B, T, (H + K) * D), values (B, T, K * D), the gate's logits (B, T, K) if any."""
        if self.packed is not None and not torch.is_grad_enabled():
            out, width = self.packed(x), self.v.out_features
            qk, v, gate = out.tensor_split((self.q.out_features + width, self.q.out_features + 2 * width), dim=-1)
            return qk, v, gate
        logits = self.ve_gate(x[..., :GATE_CHANNELS]) if self.ve_gate else None
        return torch.cat((self.q(x), self.k(x)), dim=-1), self.v(x), logits


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, 4 * config.n_embd)
        self.proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, ve: Tensor | None, rotary: tuple[Tensor, Tensor], past: Past | None) -> Tensor:
        x = x + self.attn(norm(x), ve, rotary, past)
        return x + self.mlp(norm(x))


class GPT(Model):
    """The nanochat lineage: token ids in, logits out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        L, C = config.n_layer, config.n_embd
        self.wte = nn.Embedding(config.padded_vocab_size, C)
        self.value_embeds = nn.ModuleDict(
            {
                str(i): nn.Embedding(config.padded_vocab_size, config.n_kv_head * config.head_dim)
                for i in range(L)
                if config.has_value_embedding(i)
            }
        )
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.residual_scalars:
            self.resid_scale = nn.Parameter(torch.ones(L))
            self.x0_scale = nn.Parameter(torch.zeros(L))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(L))
        self.lm_head = Linear(C, config.padded_vocab_size)
        self._rotary: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Draw the initial weights (recipe: nanochat, July 2026); equal on every worker, whatever the device."""
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        s = math.sqrt(3 / config.n_embd)
        depth = torch.arange(config.n_layer) / max(config.n_layer - 1, 1)
        for name, p in self.named_parameters():
            value = torch.empty(p.shape)
            leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
            if leaf == "wte":
                value.normal_(std=0.8, generator=generator)
            elif leaf == "lm_head":
                value.normal_(std=0.001, generator=generator)
            elif leaf in ("q", "k", "v") or name.startswith("value_embeds"):
                value.uniform_(-s, s, generator=generator)
            elif leaf == "fc":
                value.uniform_(-0.4 * s, 0.4 * s, generator=generator)
            elif leaf in ("ve_gate", "smear_gate"):
                value.uniform_(0, 0.02, generator=generator)
            elif leaf == "resid_scale":
                value = 1.15 - 0.10 * depth
            elif leaf == "x0_scale":
                value = 0.20 - 0.15 * depth
            elif leaf == "backout_lambda":
                value.fill_(0.2)
            else:  # both output projections and smear_lambda
                value.zero_()
            p.copy_(value)

    def place(self, device: torch.device, dtype: torch.dtype) -> "GPT":
        """Move to a device; embeddings take the compute dtype, which makes it the activations', the rest stays fp32."""
        self.to(device)
        use_fastest_kernel(device)
        self._rotary = rotary_table(self.config.sequence_len, self.config.head_dim, self.config.rotary_base, device)
        for module in (self.wte, *self.value_embeds.values()):
            module.to(dtype)
        return self

    def pack(self) -> None:
        for module in self.modules():
            if isinstance(module, (Linear, Attention)):
                module.pack()

    def new_cache(self, num_slots: int, max_len: int | None = None) -> KVCache:
        config = self.config
        max_len = max_len or config.sequence_len
        windows = config.windows()
        return KVCache(windows, config.n_kv_head, config.head_dim, num_slots, max_len, like=self.wte.weight.detach())

    def flops_per_token(self) -> int:
        """Count the FLOPs of forward and backward per token: 6 per matmul weight, 12 H D per key that a query sees."""
        config = self.config
        keys = sum(min(config.sequence_len, window) for window in config.windows())
        return 6 * flops.matmul_weights(self) + 12 * config.n_head * config.head_dim * keys

    def optimizer_rates(self) -> dict[str, AdamW | Muon]:
        return {name: rates_of(name, p.dim(), self.config.n_embd) for name, p in self.named_parameters()}

    def forward(self, idx: Tensor) -> Tensor:
        return self.logits(self.hidden(idx))

    def logits(self, x: Tensor) -> Tensor:
        logits, softcap = self.lm_head(x)[..., : self.config.vocab_size].float(), self.config.softcap
        if torch.is_grad_enabled() or logits.is_cuda:
            return softcap * torch.tanh(logits / softcap)
        return logits.mul_(2 / softcap).sigmoid_().mul_(2 * softcap).sub_(softcap)  # PyTorch's tanh is slow on a CPU

    def hidden(self, idx: Tensor, past: Past | None = None) -> Tensor:
        config = self.config
        T = idx.size(1)
        cos, sin = self._rotary_table(max(T, config.sequence_len), idx.device)
        rotary = (cos[:T], sin[:T]) if past is None else (cos[past.positions], sin[past.positions])

        x = norm(self.wte(idx))
        if config.smear:
            x = self._smear(x, past)
        x0, middle = x, x
        if config.residual_scalars:
            resid_scale, x0_scale = (scalars.to(x.dtype).unbind() for scalars in (self.resid_scale, self.x0_scale))
        for i, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = torch.addcmul(resid_scale[i] * x, x0_scale[i], x0)
            ve = self.value_embeds[str(i)](idx) if config.has_value_embedding(i) else None
            x = block(x, ve, rotary, past)
            if i == config.n_layer // 2:
                middle = x
        if config.backout:
            x = x - self.backout_lambda.to(x.dtype) * middle
        return norm(x)

    def _smear(self, x: Tensor, past: Past | None) -> Tensor:
        """Add to every embedding a gated share of the one before it (B, T, C)."""
        if past is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
        else:
            before = norm(self.wte(past.before.clamp(min=0))) * (past.before >= 0).unsqueeze(-1).to(x.dtype)
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + self.smear_lambda.to(x.dtype) * gate * before

    def _rotary_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._rotary is None or self._rotary[0].size(0) < length or self._rotary[0].device != device:
            with torch.inference_mode(False):  # the table outlives the pass: training may read it next
                self._rotary = rotary_table(length, self.config.head_dim, self.config.rotary_base, device)
        return self._rotary

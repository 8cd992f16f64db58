"""raychat's GPT for transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

An exported folder holds a copy of this file. It needs PyTorch and transformers, not raychat.

Notation: B batch, T new tokens, S all tokens so far, C width (n_embd), H query heads, K key/value heads, D head size.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

SMEAR_CHANNELS = 24  # channels of the embedding that gate the smear
GATE_CHANNELS = 12  # channels of the residual stream that gate the value embeddings


class RaychatConfig(PreTrainedConfig):
    """The architecture, by raychat's names."""

    model_type = "raychat"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "max_position_embeddings": "sequence_len",
    }

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"  # what `windows` were made from
    windows: list[int] | None = None  # of each layer: positions to the left that a query sees besides its own
    rotary_base: float = 100_000.0
    qk_scale: float = 1.2
    value_embeddings: bool = True
    residual_scalars: bool = True  # x = r_i x + s_i x0 before every layer
    smear: bool = True
    backout: bool = True
    softcap: float = 15.0
    tie_word_embeddings: bool = False

    def has_value_embedding(self, layer: int) -> bool:
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2


def norm(x: Tensor) -> Tensor:
    """RMSNorm without learned weight."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x (B, T, H, D) by minus theta; cos and sin are (T, 1, D / 2) fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


class RaychatAttention(nn.Module):
    def __init__(self, config: RaychatConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.qk_scale = layer, config.n_embd // config.n_head, config.qk_scale
        width = config.n_kv_head * self.head_dim
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k = nn.Linear(config.n_embd, width, bias=False)
        self.v = nn.Linear(config.n_embd, width, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        if config.has_value_embedding(layer):
            self.ve_gate = nn.Linear(GATE_CHANNELS, config.n_kv_head, bias=False)

    def forward(
        self, x: Tensor, ve: Tensor | None, rotary: tuple[Tensor, Tensor], sees: Tensor, cache: Cache | None
    ) -> Tensor:
        """x: (B, T, C) normalised; ve: (B, T, K * D) or None; sees: (B, 1, T, S) bool -> (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = (project(x).view(B, T, -1, self.head_dim) for project in (self.q, self.k, self.v))
        if ve is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * ve.view(v.shape)
        q, k = (self.qk_scale * norm(rotate(y, *rotary)) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, enable_gqa=q.size(1) != k.size(1))
        out: Tensor = self.proj(y.transpose(1, 2).reshape(B, T, -1))
        return out


class RaychatMLP(nn.Module):
    def __init__(self, config: RaychatConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(F.relu(self.fc(x)).square())
        return out


class RaychatBlock(nn.Module):
    def __init__(self, config: RaychatConfig, layer: int) -> None:
        super().__init__()
        self.attn = RaychatAttention(config, layer)
        self.mlp = RaychatMLP(config)

    def forward(
        self, x: Tensor, ve: Tensor | None, rotary: tuple[Tensor, Tensor], sees: Tensor, cache: Cache | None
    ) -> Tensor:
        x = x + self.attn(norm(x), ve, rotary, sees, cache)
        out: Tensor = x + self.mlp(norm(x))
        return out


class RaychatForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids in, logits out. The weights have raychat's names."""

    config_class = RaychatConfig
    _input_embed_layer = "wte"
    _no_split_modules = ["RaychatBlock"]  # noqa: RUF012 (an instance variable to transformers)
    _supports_sdpa = True

    def __init__(self, config: RaychatConfig) -> None:
        super().__init__(config)
        L, V, C = config.n_layer, config.vocab_size, config.n_embd
        width = config.n_kv_head * C // config.n_head
        self.wte = nn.Embedding(V, C)
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(V, width) for i in range(L) if config.has_value_embedding(i)}
        )
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.residual_scalars:
            self.resid_scale = nn.Parameter(torch.ones(L))
            self.x0_scale = nn.Parameter(torch.zeros(L))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.blocks = nn.ModuleList(RaychatBlock(config, i) for i in range(L))
        self.lm_head = nn.Linear(C, V, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute fp32 logits of the next tokens.

        Args:
            input_ids: (B, T), the tokens that follow what the cache holds.
            attention_mask: (B, S), 0 at padding, on either side; None = no padding.
            past_key_values: a DynamicCache; None = an empty one where use_cache is true.
            labels: (B, T), -100 where there is nothing to predict; each is predicted from the position before it.
            logits_to_keep: the last positions that logits are wanted of, or an index of them; 0 = all.

        Raises:
            ValueError: The attention mask has another shape.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        (B, T), past = input_ids.shape, 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(B, past + T)
        if attention_mask.shape != (B, past + T):
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(B, past + T)}")
        x = self.hidden(input_ids, attention_mask.bool(), past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        softcap = self.config.softcap
        logits = softcap * torch.tanh(self.lm_head(x[:, kept]).float() / softcap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return out.to_tuple() if return_dict is False else out

    def hidden(self, idx: Tensor, real: Tensor, cache: Cache | None) -> Tensor:
        """Compute the normalised last hidden states (B, T, C). real: (B, S) bool, False at padding."""
        config, T = self.config, idx.size(1)
        rotary = self._rotary(torch.arange(real.size(1), device=idx.device)[-T:])  # only distances count
        sees = self._masks(real, T)
        x = norm(self.wte(idx))
        if config.smear:
            x = self._smear(x, idx, real, cache)
        x0, middle = x, x
        for i, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = self.resid_scale[i] * x + self.x0_scale[i] * x0
            ve = self.value_embeds[str(i)](idx) if config.has_value_embedding(i) else None
            x = block(x, ve, rotary, sees[config.windows[i]], cache)
            if i == config.n_layer // 2:
                middle = x
        if config.backout:
            x = x - self.backout_lambda * middle
        return norm(x)

    def _smear(self, x: Tensor, idx: Tensor, real: Tensor, cache: Cache | None) -> Tensor:
        """Add to every embedding a gated share of the one before it (B, T, C)."""
        T, ids = idx.size(1), idx if cache is None else self._ids_so_far(idx, cache)
        before, exists = (F.pad(y, (1, 0))[:, -T - 1 : -1] for y in (ids, real.to(x.dtype)))
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + self.smear_lambda * gate * norm(self.wte(before)) * exists.unsqueeze(-1)

    def _ids_so_far(self, idx: Tensor, cache: Cache) -> Tensor:
        """Return all ids (B, S): the cache keeps them as if they were keys of one more layer, to follow beams."""
        while len(cache.layers) <= self.config.n_layer:
            cache.layers.append(DynamicLayer())
        ids = idx[:, None, :, None]
        return cache.update(ids, ids, self.config.n_layer)[0][:, 0, :, 0]

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        D = self.config.n_embd // self.config.n_head
        exponents = torch.arange(0, D, 2, dtype=torch.float32, device=positions.device) / D
        angles = positions[:, None, None].float() * self.config.rotary_base**-exponents
        return angles.cos(), angles.sin()

    def _masks(self, real: Tensor, T: int) -> dict[int, Tensor]:
        """Return what each of the last T positions sees (B, 1, T, S) bool, by window; padding sees itself alone."""
        position = torch.arange(real.size(1), device=real.device)
        distance = position[-T:, None] - position
        visible = (distance == 0) | ((distance > 0) & real[:, None, None])
        return {window: visible & (distance <= window) for window in set(self.config.windows)}

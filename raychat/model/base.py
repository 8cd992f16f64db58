"""What loop, engine, evaluations and checkpoints need of a model, and the learning rates that a model brings along."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raychat.model.cache import KVCache
from raychat.model.loss import token_nll

# Of a pass that is not compiled, measured on CPUs (docs/LOG.md): from how many logits on they are not kept, and the
# tokens whose logits are then computed together.
MANY_LOGITS = 2**27
PART = 512


def padded(vocab_size: int) -> int:
    """Return the rows of a model's tables for a vocabulary: the next multiple of 64."""
    return -(-vocab_size // 64) * 64


class AdamW(NamedTuple):
    """How AdamW updates a parameter."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    batch_scaled: bool = True  # whether lr grows with the batch (`lr_scale`)
    eps: float = 1e-10

    def scaled(self, lr_scale: float) -> "AdamW":
        """Return the same update at the learning rate of a run with this `lr_scale`."""
        return self._replace(lr=self.lr * lr_scale) if self.batch_scaled else self

    def changed(self, lr: float, beta2: float, weight_decay: float) -> "AdamW":
        """Return the update with other rates; what has no weight decay gets none."""
        decay = weight_decay if self.weight_decay else 0.0
        return self._replace(lr=lr, betas=(self.betas[0], beta2), weight_decay=decay)


class Muon(NamedTuple):
    """How Muon updates a matrix; momentum and weight decay follow the schedule."""

    lr: float

    def scaled(self, lr_scale: float) -> "Muon":
        """Return the same update at the learning rate of a run with this `lr_scale`."""
        return self._replace(lr=self.lr * lr_scale)


class Past(Protocol):
    """What a model asks of a pass over N tokens, each of which has a past of its own."""

    before: Tensor  # (N,) int64, the token before each one; -1 at a start
    positions: Tensor  # (N,) int64

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q (N, H, D) over what each token sees, itself included; k and v (N, K, D) are of the N tokens."""
        ...


class Model(nn.Module, ABC):
    """A language model. Everything outside raychat/model uses this face alone; see `registry` for the classes."""

    config: Any  # a frozen dataclass with at least sequence_len, vocab_size and n_embd
    max_grad_norm: float | None = None  # to which the gradient of all parameters together is scaled down; None = never

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, idx: Tensor) -> Tensor:
        """Compute fp32 logits (B, T, V) of every next token from whole sequences of ids (B, T) int64."""

    @abstractmethod
    def hidden(self, idx: Tensor, past: Past | None = None) -> Tensor:
        """Compute the normalised last hidden states (B, T, C).

        Args:
            past: of a pass over N tokens of any sequences; idx is (1, N). None = the rows are whole sequences.
        """

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Compute fp32 logits (..., V) of the next tokens from hidden states (..., C)."""

    def nll(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Compute what training minimises: `token_nll` of targets (B, T) after ids (B, T), in nats (B, T) fp32.

        Very many logits are not kept but computed again in the backward pass, those of some tokens at a time.
        """
        x = self.hidden(idx)
        if torch.compiler.is_compiling() or targets.numel() * self.config.vocab_size < MANY_LOGITS:
            return self._head_nll(x, targets)
        parts = zip(x.flatten(0, 1).split(PART), targets.flatten().split(PART), strict=True)
        of_parts = [checkpoint(self._head_nll, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(of_parts).view_as(targets)

    def _head_nll(self, x: Tensor, targets: Tensor) -> Tensor:
        return token_nll(self.logits(x), targets)

    @abstractmethod
    def init_weights(self, seed: int = 0) -> None:
        """Draw the initial weights, equal on every rank and device."""

    def cropped(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the same model of a longer context as this one's; most models' do not depend on it."""
        return weights

    @abstractmethod
    def place(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move to a device and set the dtype that activations are computed in."""

    @abstractmethod
    def pack(self) -> None:
        """Let forward passes without gradients read copies of the weights that are laid out for inference.

        The copies follow the weights when these are changed in place.
        """

    @abstractmethod
    def new_cache(self, num_slots: int, max_len: int | None = None) -> KVCache:
        """Return an empty cache for `num_slots` sequences of up to `max_len` tokens (None = the context)."""

    @abstractmethod
    def flops_per_token(self) -> int:
        """Count the FLOPs of forward and backward per trained token."""

    @abstractmethod
    def optimizer_rates(self) -> dict[str, AdamW | Muon]:
        """Return how each parameter is updated, by its name, before `lr_scale` and the schedule."""

"""Everything that follows from `depth`: the model's shape, length of training, batch, learning rates, weight decay."""

import math
from typing import NamedTuple

from raychat.model.base import padded

VOCAB_SIZE = 2**15
SEQUENCE_LEN = 2048
RATIO = 12.0  # training tokens per scaling parameter; 10.5 is compute-optimal, 8 the speedrun's
BATCH_TOKENS_REF = 2**19  # of the reference, d12, for which the learning rates and the weight decay were tuned
WEIGHT_DECAY_REF = 0.28
# The rule's decay grows without bound as runs shrink: 1.9 at d4, some 30 in a demo of a few hundred small steps.
# The bound leaves depth 6 and up to the rule. Measured at d2, 250 steps of tinyshakespeare's bytes, lr_scale 0.5:
# validation 1.917 nats with 0.28, 1.929 with 1, 1.959 with 4.
MAX_WEIGHT_DECAY = 1.0
# The rule's learning rates are too low for small batches. Measured at d4, 150 steps of 8,192 tokens, where
# the rule gives 0.125: val bpb 2.26 with 0.125, 2.09 with 0.25, 1.94 with 0.4, 1.88 with 0.7 (docs/LOG.md).
MIN_LR_SCALE = 0.4


class Scaling(NamedTuple):
    """A run's shape and sizes."""

    n_layer: int
    n_embd: int
    n_head: int
    head_dim: int
    sequence_len: int
    vocab_size: int
    num_scaling_params: int  # block matrices + lm_head
    tokens: int  # trained on: steps * batch_tokens
    batch_tokens: int  # per optimizer step, all workers together
    steps: int
    lr_scale: float  # times every learning rate of the recipe
    weight_decay: float  # Muon's

    def model(self) -> dict[str, int]:
        """Return the sizes of the model, as its config names them."""
        sizes = {name: getattr(self, name) for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_embd")}
        return sizes | {"n_kv_head": self.n_head}


def from_depth(
    depth: int,
    *,
    width: int | None = None,
    head_dim: int | None = None,
    sequence_len: int = SEQUENCE_LEN,
    vocab_size: int = VOCAB_SIZE,
    ratio: float = RATIO,
    batch_tokens: int | None = None,
    steps: int | None = None,
) -> Scaling:
    """Derive a run from its depth.

    The width is 64 per layer, rounded up to a multiple of the head dim. With D tokens (`ratio` per scaling parameter)
    and the reference d12 at the same ratio: batch 2^round(log2(B_ref (D/D_ref)^0.383)), learning rates times
    sqrt(B/B_ref) and at least 0.4, weight decay 0.28 sqrt(B/B_ref) D_ref/D and at most 1.

    Args:
        width: None: as said. Given: a multiple of the head dim.
        head_dim: None: 128, below depth 8 64.
        batch_tokens: None: by the rule, rounded to whole rows of `sequence_len`.
        steps: None: as many as D takes. Given: D is what these steps see; the weight decay follows, the batch does not.

    Raises:
        ValueError: On a size that is not positive, a batch that is not a whole number of rows, or a width that is not a
            whole number of heads.

    Source: batch arXiv:2505.13738, weight decay arXiv:2405.13698.

    >>> from_depth(24).n_embd, from_depth(24).batch_tokens == 2**20
    (1536, True)
    """
    _check_positive(depth=depth, width=width, head_dim=head_dim, sequence_len=sequence_len, vocab_size=vocab_size)
    _check_positive(ratio=ratio, batch_tokens=batch_tokens, steps=steps)
    if batch_tokens is not None and batch_tokens % sequence_len:
        raise ValueError(
            f"batch_tokens must be a multiple of sequence_len {sequence_len}, got {batch_tokens}: "
            f"take {max(1, round(batch_tokens / sequence_len)) * sequence_len}"
        )
    n_embd, head_dim = _width(depth, head_dim, width)
    num_params = num_scaling_params(depth, n_embd, head_dim, vocab_size)
    tokens = ratio * num_params
    tokens_ref = ratio * num_scaling_params(12, *_width(12), VOCAB_SIZE)
    if batch_tokens is None:
        rule = 2 ** round(math.log2(BATCH_TOKENS_REF * (tokens / tokens_ref) ** 0.383))
        batch_tokens = max(1, round(rule / sequence_len)) * sequence_len
    if steps is None:
        steps = max(1, round(tokens / batch_tokens))
    else:
        tokens = steps * batch_tokens
    by_batch = math.sqrt(batch_tokens / BATCH_TOKENS_REF)
    return Scaling(
        n_layer=depth,
        n_embd=n_embd,
        n_head=n_embd // head_dim,
        head_dim=head_dim,
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        num_scaling_params=num_params,
        tokens=steps * batch_tokens,
        batch_tokens=batch_tokens,
        steps=steps,
        lr_scale=max(by_batch, MIN_LR_SCALE),
        weight_decay=min(WEIGHT_DECAY_REF * by_batch * tokens_ref / tokens, MAX_WEIGHT_DECAY),
    )


def _check_positive(**sizes: float | None) -> None:
    for name, value in sizes.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _width(depth: int, head_dim: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Return (n_embd, head_dim)."""
    if head_dim is None:
        head_dim = 128 if depth >= 8 else 64
    if width is not None:
        if width % head_dim:
            raise ValueError(f"width must be a multiple of the head size {head_dim}, got {width}")
        return width, head_dim
    return math.ceil(depth * 64 / head_dim) * head_dim, head_dim


def num_scaling_params(n_layer: int, n_embd: int, head_dim: int, vocab_size: int) -> int:
    """Count lm_head and the blocks' matrices: attention 4 C^2, MLP 8 C^2, in every second layer 12 per head (gate)."""
    gates = math.ceil(n_layer / 2) * (n_embd // head_dim) * 12
    return n_layer * 12 * n_embd**2 + gates + padded(vocab_size) * n_embd

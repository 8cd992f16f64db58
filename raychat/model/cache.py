"""The key/value cache: what a model remembers of the sequences it continues."""

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys, values and what else a model must remember of its past, for a fixed number of sequences ("slots").

    Positions are counted per slot, so sequences of different lengths live side by side. `lengths` is kept on the CPU:
    asking for it never waits for the device.
    """

    def __init__(self, config: Any, num_slots: int, max_len: int, like: Tensor) -> None:
        """Make room for `num_slots` sequences of up to `max_len` tokens, with the device and dtype of `like`."""
        shape = (config.n_layer, num_slots, max_len, config.n_kv_head, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.previous = like.new_zeros(num_slots, config.n_embd)  # last un-smeared embedding
        self.lengths = torch.zeros(num_slots, dtype=torch.int64)
        self.max_len = max_len

    def at(self, slots: Tensor) -> "Slots":
        """Return the view that a forward pass of one sequence per slot takes; slots is (B,) int64, no slot twice."""
        return Slots(self, slots)

    def reset(self, slot: int) -> None:
        """Forget the sequence of a slot."""
        self.lengths[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """Make a slot hold the same sequence as another: one prefill then serves many samples."""
        n = int(self.lengths[source])
        self.keys[:, target, :n] = self.keys[:, source, :n]
        self.values[:, target, :n] = self.values[:, source, :n]
        self.previous[target] = self.previous[source]
        self.lengths[target] = n


class Slots:
    """Some slots of a cache during one forward pass that appends T tokens to each of them."""

    def __init__(self, cache: KVCache, slots: Tensor) -> None:
        self._cache = cache
        self._slots_cpu = slots.cpu()
        self._slots = slots.to(cache.keys.device)

    def positions(self, length: int) -> Tensor:
        """Return the positions (B, T) of the next T tokens. Raises ValueError where they do not fit."""
        held = self._cache.lengths[self._slots_cpu]
        if int(held.max()) + length > self._cache.max_len:
            raise ValueError(
                f"the cache holds {int(held.max())} of {self._cache.max_len} tokens; {length} more do not fit"
            )
        return (held[:, None] + torch.arange(length)).to(self._cache.keys.device)

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, T, K, D) at their positions; return all keys and values held, each (B, S, K, D)."""
        rows = self._slots[:, None]
        self._cache.keys[layer].index_put_((rows, positions), k)
        self._cache.values[layer].index_put_((rows, positions), v)
        used = int(self._cache.lengths[self._slots_cpu].max()) + k.size(1)
        return self._cache.keys[layer, self._slots, :used], self._cache.values[layer, self._slots, :used]

    def exchange_previous(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Store the last embedding of x (B, T, C); return the one before its first (B, C), and if there is one (B,)."""
        before = self._cache.previous[self._slots]
        self._cache.previous[self._slots] = x[:, -1]
        return before, (self._cache.lengths[self._slots_cpu] > 0).to(x.device)

    def advance(self, length: int) -> None:
        """Count T more tokens for these slots, at the end of the forward pass."""
        self._cache.lengths[self._slots_cpu] += length

"""The key/value cache: what a model remembers of the sequences it continues.

Sequences live side by side in slots, at their positions in order. A layer with a sliding window keeps only the last
2 x window tokens of a slot: when these are full, its newest `window` entries move to the front.

What is where is counted in numpy, on the CPU: asking for it never waits for a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raychat.device import to_device
from raychat.model.attention import PackedSequences, attend_chunk, attend_packed, attend_slots


class Chunk(NamedTuple):
    """Consecutive tokens that a forward pass appends to a slot."""

    slot: int
    tokens: Sequence[int] | np.ndarray


@dataclass
class _Span:
    """Layers with the same window, which keep the same entries."""

    window: int
    capacity: int  # entries of a slot
    starts: np.ndarray  # (S,) int64, position of each slot's first entry


class KVCache:
    """Keys and values of up to `num_slots` sequences of up to `max_len` tokens.

    Args:
        windows: of each layer, in tokens to the left of the query's own.
        like: its device and dtype are the cache's.
    """

    def __init__(
        self, windows: Sequence[int], n_kv_head: int, head_dim: int, num_slots: int, max_len: int, like: Tensor
    ) -> None:
        self.windows, self._shape, self._like = list(windows), (n_kv_head, head_dim), like
        self.keys: list[Tensor] = []  # of each layer: (S, capacity, K, D)
        self.values: list[Tensor] = []
        self.lengths = np.zeros(0, dtype=np.int64)  # (S,) tokens held
        self.tokens = np.zeros((0, 0), dtype=np.int64)  # (S, max_len) their ids
        self.spans: dict[int, _Span] = {}  # by window
        self.num_resizes = 0  # after each, keys and values are other tensors
        self.resize(num_slots, max_len)

    @property
    def packed(self) -> bool:
        """Whether one kernel attends for all sequences of a pass, by what is on the device alone."""
        return self._like.is_cuda and self._like.dtype != torch.float32

    @property
    def num_slots(self) -> int:
        return len(self.lengths)

    @property
    def max_len(self) -> int:
        return self.tokens.shape[1]

    def resize(self, num_slots: int, max_len: int) -> None:
        """Change the number of slots, and lengthen them; what the remaining slots hold stays."""
        self.num_resizes += 1
        kept = min(self.num_slots, num_slots)
        grow = (0, num_slots - kept)
        self.lengths = np.pad(self.lengths[:kept], grow)
        self.tokens = np.pad(self.tokens[:kept], (grow, (0, max_len - self.tokens.shape[1])))
        spans = {}
        for window in set(self.windows):
            starts = self.spans[window].starts if self.spans else self.lengths
            spans[window] = _Span(window, min(max_len, 2 * window), np.pad(starts[:kept], grow))
        self.spans = spans
        for tensors in (self.keys, self.values):
            for layer, window in enumerate(self.windows):
                new = self._new_tensor(num_slots, spans[window].capacity)
                if layer < len(tensors):
                    old = tensors[layer]
                    new[:kept, : old.size(1)] = old[:kept, : new.size(1)]
                    tensors[layer] = new
                else:
                    tensors.append(new)

    def _new_tensor(self, num_slots: int, capacity: int) -> Tensor:
        """Return zeros (S, capacity, K, D), laid out as what attends reads them: a head alone reads one place on."""
        n_kv_head, head_dim = self._shape
        if self.packed:
            return self._like.new_zeros(num_slots, capacity, n_kv_head, head_dim)
        return self._like.new_zeros(num_slots, n_kv_head, capacity, head_dim).transpose(1, 2)

    @property
    def max_chunk(self) -> int:
        """Tokens that fit into any slot in one pass, up to `max_len` in all."""
        return min([span.window for span in self.spans.values() if span.capacity < self.max_len], default=self.max_len)

    def reset(self, slot: int) -> None:
        """Forget the sequence of a slot."""
        self.lengths[slot] = 0
        for span in self.spans.values():
            span.starts[slot] = 0

    def holds(self, slot: int, length: int) -> bool:
        """Whether a sequence can be continued from the first `length` tokens of a slot."""
        return length <= self.lengths[slot] and all(
            span.starts[slot] <= max(0, length - span.window) for span in self.spans.values()
        )

    def match(self, tokens: np.ndarray) -> np.ndarray:
        """Return how many tokens each slot shares with the beginning of a sequence, (S,) int64."""
        width = min(len(tokens), self.max_len)
        same = (self.tokens[:, :width] == tokens[:width]) & (np.arange(width) < self.lengths[:, None])
        return np.asarray(np.pad(same, ((0, 0), (0, 1))).argmin(1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a slot hold the first `length` tokens of another one (`holds`)."""
        if source != target:
            for layer, window in enumerate(self.windows):
                used = slice(0, length - int(self.spans[window].starts[source]))
                self.keys[layer][target, used] = self.keys[layer][source, used]
                self.values[layer][target, used] = self.values[layer][source, used]
            self.tokens[target, :length] = self.tokens[source, :length]
        self.lengths[target] = length
        for span in self.spans.values():
            span.starts[target] = span.starts[source]

    def swap(self, a: int, b: int) -> None:
        """Exchange the sequences of two slots."""
        if a == b:
            return
        pair = [a, b]
        for layer, window in enumerate(self.windows):
            in_a, in_b = (self.lengths[pair] - self.spans[window].starts[pair]).tolist()
            for tensor in (self.keys[layer], self.values[layer]):
                kept = tensor[a, :in_a].clone()
                tensor[a, :in_b] = tensor[b, :in_b]
                tensor[b, :in_a] = kept
        for column in (self.lengths, self.tokens, *(span.starts for span in self.spans.values())):
            column[pair] = column[pair[::-1]]

    def begin(
        self,
        tokens: np.ndarray,
        chunks: Sequence[Chunk] = (),
        *,
        slots: np.ndarray | None = None,
        table: Tensor | None = None,
    ) -> "Pass":
        """Return the pass that appends tokens (B,), one to each of the first B slots, and then chunks to others.

        Args:
            slots: (B,) int64 of the tokens, for a packed cache; a slot may repeat, with its token. None = the first B.
            table: what an earlier pass of the same form keeps on the device (`Pass.table`), to be overwritten.

        Raises:
            ValueError: a sequence would be longer than `max_len`, or a chunk longer than `max_chunk`.
        """
        singles = np.arange(len(tokens)) if slots is None else slots
        slots = np.array([*singles, *(chunk.slot for chunk in chunks)], dtype=np.int64)
        sizes = np.array([1] * len(singles) + [len(chunk.tokens) for chunk in chunks], dtype=np.int64)
        ends = self.lengths[slots] + sizes
        read = sizes[len(singles) :]
        if ends.max() > self.max_len or read.max(initial=0) > self.max_chunk:
            raise ValueError(
                f"a pass over chunks of {read.tolist()} tokens up to positions {ends.tolist()} does not fit; expected "
                f"chunks of at most {self.max_chunk} tokens, and sequences of {self.max_len}"
            )
        for span in self.spans.values():
            for slot in slots[ends - span.starts[slots] > span.capacity]:
                self._drop_oldest(span, int(slot))
        ids = np.concatenate([tokens, *(chunk.tokens for chunk in chunks)])
        return Pass(self, ids.astype(np.int64), slots, sizes, len(singles), table)

    def _drop_oldest(self, span: _Span, slot: int) -> None:
        """Move the newest `window` entries of a slot to its front."""
        start = int(self.lengths[slot]) - span.window
        moved = slice(start - int(span.starts[slot]), int(self.lengths[slot] - span.starts[slot]))
        for layer, window in enumerate(self.windows):
            if window == span.window:
                for tensor in (self.keys[layer], self.values[layer]):
                    tensor[slot, : span.window] = tensor[slot, moved].clone()
        span.starts[slot] = start


class _Index(NamedTuple):
    """Where a pass writes in the layers of one span, and what its tokens see there."""

    entries: Tensor  # (N,) int64, of each token in its slot
    seen: list[int]  # (B + chunks,) entries up to the last token of each sequence
    mask: Tensor | None = None  # (B, 1, 1, S) 0 at the entries that each of the first B slots sees, else -inf
    packed: PackedSequences | None = None  # what the one kernel of a packed pass reads in place of seen and mask


class Pass:
    """One forward pass over N tokens of a cache's sequences: one of each of the first B slots, then chunks of others.

    A model asks it for ids, for positions, for the ids before, and for attention.

    Args:
        ids: (N,) int64.
        slots, sizes: (B + chunks,) int64, of each sequence.
        num_single: B.
        table: as in `KVCache.begin`.
    """

    def __init__(
        self,
        cache: KVCache,
        ids: np.ndarray,
        slots: np.ndarray,
        sizes: np.ndarray,
        num_single: int,
        table: Tensor | None = None,
    ) -> None:
        self._cache, self._num_single, self._slots, self._sizes = cache, num_single, slots, sizes
        self._ends = sizes.cumsum()  # (B + chunks,) of each sequence's tokens among the N
        first, held = self._ends - sizes, cache.lengths[slots]
        slot_of, positions = slots.repeat(sizes), np.arange(len(ids)) + (held - first).repeat(sizes)
        before = np.empty_like(ids)
        before[1:] = ids[:-1]
        before[first] = np.where(held > 0, cache.tokens[slots, held - 1], -1)
        spans = cache.spans.values()
        entries = [positions - span.starts[slot_of] for span in spans]
        seen = [held + sizes - span.starts[slots] for span in spans]
        sections = [ids, before, positions, slot_of, *entries]
        if cache.packed:
            offsets = [np.append(slots, 0) * span.capacity for span in spans]
            sections.append(_as_int64([np.append(0, self._ends), *offsets, *seen]))
        host, device = np.concatenate(sections), cache.keys[0].device
        # All that a pass needs, at once: on a GPU in 16 bit it moves nothing else.
        self.table = to_device(host, device) if table is None else table.copy_(to_device(host, device))
        # ids, before and positions are (N,) int64; before is -1 at a start.
        columns = self.table.split_with_sizes([len(x) for x in sections])
        self.ids, self.before, self.positions, self._slot_of, *rest = columns
        self._writes = slot_of, positions, ids
        packed = self._packed(rest.pop(), len(spans)) if cache.packed else [None] * len(spans)
        self._indices = {
            span.window: self._index(span, *parts) for span, *parts in zip(spans, rest, seen, packed, strict=True)
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (N, K, D), and attend with q (N, H, D) over what each token's sequence holds: (N, H, D)."""
        window, keys, values = self._cache.windows[layer], self._cache.keys[layer], self._cache.values[layer]
        index = self._indices[window]
        keys.index_put_((self._slot_of, index.entries), k)
        values.index_put_((self._slot_of, index.entries), v)
        if index.packed is not None:
            return attend_packed(q, keys, values, index.packed, window)
        B, out = self._num_single, []
        if B:
            held = (slice(B), slice(max(index.seen[:B])))
            out.append(attend_slots(q[:B], keys[held], values[held], index.mask))
        for i in range(B, len(self._sizes)):
            tokens, slot = slice(self._ends[i] - self._sizes[i], self._ends[i]), self._slots[i]
            seen = (slot, slice(index.seen[i]))
            out.append(attend_chunk(q[tokens], keys[seen], values[seen], window))
        return out[0] if len(out) == 1 else torch.cat(out)

    def finish(self) -> None:
        """Count the tokens as held, after the pass."""
        slot_of, positions, ids = self._writes
        self._cache.tokens[slot_of, positions] = ids
        self._cache.lengths[self._slots] += self._sizes  # once for a slot whose token is repeated

    def _packed(self, section: Tensor, num_spans: int) -> list[PackedSequences]:
        """Read what `_as_int64` has packed, for each span."""
        rows = len(self._slots)
        sizes = [rows + 1] * (1 + num_spans) + [rows] * num_spans
        bounds, *rest = section.view(torch.int32)[: sum(sizes)].split_with_sizes(sizes)
        longest = int(self._sizes.max())
        return [
            PackedSequences(bounds, offsets, seen, longest)
            for offsets, seen in zip(rest[:num_spans], rest[num_spans:], strict=True)
        ]

    def _index(self, span: _Span, entries: Tensor, seen: np.ndarray, packed: PackedSequences | None) -> _Index:
        singles, mask = seen[: self._num_single], None
        width = int(singles.max(initial=0))
        if packed is None and len(singles) and (singles.min() < width or width > span.window + 1):
            distance = singles[:, None] - 1 - np.arange(width)
            sees = (distance >= 0) & (distance <= span.window)
            numbers = np.where(sees, 0, -np.inf).astype(np.float32)
            mask = to_device(numbers, entries.device).to(self._cache.keys[0].dtype)[:, None, None]
        return _Index(entries, seen.tolist(), mask, packed)


def _as_int64(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return int32 numbers as the memory of int64 ones, so that they travel in one table with these."""
    numbers = np.concatenate(arrays).astype(np.int32)
    return np.append(numbers, [np.int32(0)] * (len(numbers) % 2)).astype(np.int32).view(np.int64)

"""The scheduler: which requests run, in which slots of the cache, and how many tokens of each go through a step.

Running requests hold the first slots, so that a pass reads the cache in place: first those with one token to read
(they decode), then those in the middle of a prompt. The slots behind them keep what finished requests have left there.
A new request begins with the longest prefix that any slot holds: an earlier turn of a chat, the prompt that it shares
with other samples, or common examples.
"""

from collections import deque
from itertools import islice
from typing import NamedTuple

import numpy as np

from raychat.engine.request import Request
from raychat.model.cache import Chunk, KVCache

_FIRST_LENGTH = 256  # of the cache's slots; they double when a sequence needs more
_WORTH_WAITING = 16  # tokens that a request must share with a prompt being read, to wait until it is read
_LOOK_AHEAD = 64  # waiting requests that are considered for a free slot


class StepPlan(NamedTuple):
    """One step: requests that read one token each, in the order of their slots, and chunks of prompts for others."""

    singles: list[Request]
    chunks: list[tuple[Request, Chunk]]


class Scheduler:
    """Decide what runs.

    Args:
        max_len: tokens that a sequence can hold.
        cache_tokens: bounds slots times their length; None = every slot may be `max_len` long. When sequences outgrow
            it, the newest requests lose their slots and are computed anew later (preemption).
        step_tokens: tokens of one step; prompts are read in chunks beside the requests that decode.
    """

    def __init__(
        self, cache: KVCache, *, max_len: int, max_sequences: int, cache_tokens: int | None, step_tokens: int
    ) -> None:
        self.cache = cache
        self._max_len, self._max_sequences = max_len, max_sequences
        self._step_tokens = max(step_tokens, max_sequences + 1)
        self._max_slots = max_sequences + max_sequences // 4 + 1
        self.cache_tokens = cache_tokens or self._max_slots * max_len
        self.rows: list[Request] = []  # the running requests; row i holds slot i
        self.waiting: deque[Request] = deque()
        self._last_used = np.zeros(self._max_slots, dtype=np.int64)  # of each slot, by the clock
        self._clock = 0
        self.prompt_tokens = self.reused_tokens = self.preemptions = 0
        self._resize(min(max_len, _FIRST_LENGTH))

    def schedule(self) -> StepPlan:
        """Start waiting requests and return the next step."""
        self._clock += 1
        self._make_room(max((request.length for request in self.rows), default=0))
        self._admit()
        pending = self._arrange()
        num_singles = pending.count(1)
        budget, chunks = self._step_tokens - num_singles, []
        for slot in range(num_singles, len(self.rows)):
            size = min(pending[slot], budget, self.cache.max_chunk)
            if size > 0:
                request, start = self.rows[slot], int(self.cache.lengths[slot])
                chunks.append((request, Chunk(slot, request.tokens[start : start + size])))
                budget -= size
        return StepPlan(self.rows[:num_singles], chunks)

    def remove(self, request: Request) -> None:
        """Take a request out, waiting or running; what its slot holds stays until the slot is needed."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.rows:
            last = len(self.rows) - 1
            self._swap(self.rows.index(request), last)
            self.rows.pop()
            self._last_used[last] = self._clock

    def forget(self) -> None:
        """Empty all slots: what is in them was computed with other weights. Running requests are read again."""
        for slot in range(self.cache.num_slots):
            self.cache.reset(slot)

    def _arrange(self) -> list[int]:
        """Put the requests that have one token to read first; return how many each one has."""
        pending = [r.length - n for r, n in zip(self.rows, self.cache.lengths.tolist(), strict=False)]
        first = 0
        for slot, number in enumerate(pending):
            if number == 1:
                if slot != first:
                    self._swap(slot, first)
                    pending[slot], pending[first] = pending[first], pending[slot]
                first += 1
        return pending

    def _admit(self) -> None:
        """Start waiting requests while there are slots and tokens in the step for them."""
        unread = [r for r, n in zip(self.rows, self.cache.lengths.tolist(), strict=False) if r.length > n + 1]
        budget = self._step_tokens - len(self.rows)
        for request in list(islice(self.waiting, _LOOK_AHEAD)):
            if len(self.rows) >= self._max_sequences or budget <= 0:
                return
            if self.rows and self._slots_at(request.length) <= len(self.rows):
                return
            self._make_room(request.length)  # before a slot is chosen: longer slots are fewer
            source, length = self._prefix(request)
            if any(_common(request.known, other.known) >= length + _WORTH_WAITING for other in unread):
                continue
            self._place(request, source, length)
            self.waiting.remove(request)
            budget -= request.length - length
            if request.length > length + 1:
                unread.append(request)

    def _prefix(self, request: Request) -> tuple[int, int]:
        """Return the slot that holds the longest beginning of a request, and its length.

        At least one token is left to read, for its logits; all of them where the prompt's logits are asked for.
        """
        if request.params.prompt_logprobs is not None and not request.num_new:
            return 0, 0
        lengths = self.cache.match(request.tokens[: request.length - 1])
        for slot in np.argsort(-lengths):
            if self.cache.holds(int(slot), int(lengths[slot])):
                return int(slot), int(lengths[slot])
        return 0, 0

    def _place(self, request: Request, source: int, length: int) -> None:
        """Make a request the last row, with the first `length` tokens of the slot `source`."""
        slot = len(self.rows)
        left = int(self.cache.lengths[source]) - length
        if source >= slot and left <= _WORTH_WAITING:  # nothing is lost: the request continues what the slot holds
            victim = source
        else:
            victim = slot + int(self._last_used[slot : self.cache.num_slots].argmin())
        self._swap(slot, victim)
        source = {slot: victim, victim: slot}.get(source, source)
        self.cache.copy(source, slot, length) if length else self.cache.reset(slot)
        self._last_used[source] = self._clock
        self.rows.append(request)
        if not request.num_new:
            self.prompt_tokens += request.num_prompt
            self.reused_tokens += length

    def _slots_at(self, length: int) -> int:
        """Return how many slots there are when they must hold this many tokens."""
        return min(self._max_slots, self.cache_tokens // self._length_for(length))

    def _length_for(self, length: int) -> int:
        longer = self.cache.max_len
        while longer < length:
            longer = min(2 * longer, self._max_len)
        return longer

    def _make_room(self, length: int) -> None:
        """Lengthen the slots, if sequences of this many tokens do not fit; preempt the newest requests if need be."""
        if length <= self.cache.max_len:
            return
        while len(self.rows) > self._slots_at(length):
            newest = max(self.rows, key=lambda request: request.id)
            self.remove(newest)
            self.waiting.appendleft(newest)
            self.preemptions += 1
        self._resize(self._length_for(length))

    def _resize(self, length: int) -> None:
        self.cache.resize(min(self._max_slots, self.cache_tokens // length), length)

    def _swap(self, a: int, b: int) -> None:
        self.cache.swap(a, b)
        self._last_used[[a, b]] = self._last_used[[b, a]]
        if max(a, b) < len(self.rows):
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many tokens two sequences share at their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n

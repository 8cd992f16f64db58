"""The engine: requests join and leave a running batch at any step. Chat, rollouts and evaluation generate with it.

A `step` schedules, runs and postprocesses: it prefills waiting requests into free slots, decodes one token of every
running request in one batched pass, and returns an event per request. Each request samples with its own random
generator, from logits that depend on its own tokens only. So its tokens do not depend on the requests beside it, up to
the rounding of matrix products of different batch sizes.
"""

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raychat.chat.tools import calculator
from raychat.engine.sampling import DEFAULT, SamplingParams, sample
from raychat.engine.tool import Tool, ToolUse
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

Finish = Literal["stop", "length"]


class Event(NamedTuple):
    """The next token of a request."""

    id: int  # of the request
    token: int
    logprob: float  # of the token under the model itself, at temperature 1, whatever the sampling parameters
    sampled: bool  # False = forced by a tool
    finish: Finish | None  # set with the last token: "stop" = a stop token, "length" = a limit of tokens or the context


class Completion(NamedTuple):
    """A finished request, with one entry per token, the stop token included; the fields are those of `Event`."""

    ids: list[int]
    logprobs: list[float]
    sampled: list[bool]
    finish: Finish


@dataclass
class _Request:
    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int]
    generator: torch.Generator
    tool_use: ToolUse
    num_new: int = 0
    last: int = -1  # newest token, not in the cache yet


class Engine:
    """Continue many token sequences at once with one model and one key/value cache.

    An engine is not thread-safe: one thread owns it.

    Args:
        max_sequences: requests that run at once; more wait.
        tool: gets the text of a tool call; the engine forces its answer into the sequence, unless it is None.

    Raises:
        ValueError: `max_sequences` is less than 1, or the tokenizer is not the model's.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, *, max_sequences: int = 16, tool: Tool = calculator) -> None:
        if max_sequences < 1:
            raise ValueError(f"max_sequences is {max_sequences}; expected a whole number >= 1")
        if tokenizer.vocab_size != model.config.vocab_size:
            got = f"it has {tokenizer.vocab_size} tokens, expected {model.config.vocab_size}"
            raise ValueError(f"the tokenizer is not the model's: {got}")
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self.context = int(model.config.sequence_len)
        self._device = next(iter(model.parameters())).device
        # One slot more than requests: it holds the newest prompt, and further samples of that prompt copy it.
        self._cache = model.new_cache(max_sequences + 1)
        self._prefix_slot = max_sequences
        self._prefix: tuple[int, ...] | None = None
        self._prefix_logits = torch.empty(0)
        self._free = list(reversed(range(max_sequences)))
        self._waiting: deque[_Request] = deque()
        self._running: dict[int, _Request] = {}  # by slot
        self._num_added = 0

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    def add(self, prompt: Sequence[int], params: SamplingParams = DEFAULT) -> int:
        """Queue a request for the next step that has a free slot; return its id.

        Raises:
            ValueError: the prompt is empty, longer than the model's context, or holds ids outside the vocabulary.
        """
        prompt = tuple(map(int, prompt))
        if not 1 <= len(prompt) <= self.context:
            raise ValueError(f"the prompt has {len(prompt)} tokens; expected 1 to {self.context}, the model's context")
        if not all(0 <= token < self.tokenizer.vocab_size for token in prompt):
            raise ValueError(f"the prompt holds ids outside the vocabulary of {self.tokenizer.vocab_size}")
        special = self.tokenizer.special
        stop = params.stop_ids if params.stop_ids is not None else (special["<|assistant_end|>"], special["<|bos|>"])
        generator = torch.Generator().manual_seed(secrets.randbits(63) if params.seed is None else params.seed)
        self._num_added += 1
        tool_use = ToolUse(self.tokenizer, self.tool)
        self._waiting.append(_Request(self._num_added, prompt, params, frozenset(stop), generator, tool_use))
        return self._num_added

    def cancel(self, id: int) -> None:
        """Drop a request: it gets no more events. A request that has finished is ignored."""
        self._waiting = deque(r for r in self._waiting if r.id != id)
        for slot in [slot for slot, r in self._running.items() if r.id == id]:
            self._leave(slot)

    def load_weights(self, weights: Mapping[str, Tensor | np.ndarray]) -> None:
        """Copy new weights into the model, in place. Running requests continue with them from their cached keys.

        Raises:
            ValueError: names or shapes are not the model's.
        """
        own = self.model.state_dict()
        shapes, expected = ({k: tuple(t.shape) for k, t in tensors.items()} for tensors in (weights, own))
        for name in sorted(shapes.keys() | expected.keys()):
            got, want = shapes.get(name), expected.get(name)
            if got != want:
                raise ValueError(f"the weights are not this model's: {name}: got shape {got}, expected {want}")
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(torch.tensor(value) if isinstance(value, np.ndarray) else value)
        self._prefix = None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Prefill waiting requests into free slots, give every request its next token, and return an event for each.

        Raises:
            FloatingPointError: the model's logits are NaN or infinite.
        """
        running = list(self._running)
        logits = [self._forward([[self._running[slot].last] for slot in running], running)] if running else []
        logits += self._admit()
        return self._postprocess(list(self._running), torch.cat(logits)) if logits else []

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] = DEFAULT
    ) -> list[Completion]:
        """Continue all prompts to their ends; return a completion for each, in order.

        Equal prompts next to each other are prefilled once: for n samples of a prompt, give it n times.

        Args:
            params: one for each prompt, or one for all; then prompt i gets its seed + i, so that samples differ.

        Raises:
            ValueError: as `add`, before anything is generated; or other requests are in flight.
            FloatingPointError: as `step`.
        """
        if self.busy:
            raise ValueError("other requests are in flight; generate needs an idle engine: use add and step")
        if isinstance(params, SamplingParams):
            seed = params.seed
            params = [params if seed is None else replace(params, seed=seed + i) for i in range(len(prompts))]
        if len(params) != len(prompts):
            raise ValueError(f"got {len(params)} sampling parameters for {len(prompts)} prompts; expected one for each")
        done: dict[int, Completion] = {}
        try:
            for prompt, p in zip(prompts, params, strict=True):
                done[self.add(prompt, p)] = Completion([], [], [], "length")
            while self._waiting or self._running:
                for event in self.step():
                    completion = done[event.id]
                    completion.ids.append(event.token)
                    completion.logprobs.append(event.logprob)
                    completion.sampled.append(event.sampled)
                    if event.finish:
                        done[event.id] = completion._replace(finish=event.finish)
        finally:
            for id in done:  # nothing is left to cancel, except after an error or an interrupt
                self.cancel(id)
        return list(done.values())

    def _forward(self, tokens: list[list[int]], slots: list[int]) -> Tensor:
        """Read tokens (B, T) into the slots; return the next logits (B, V)."""
        return self.model(torch.tensor(tokens, device=self._device), self._cache.at(torch.tensor(slots)))[:, -1]

    def _admit(self) -> list[Tensor]:
        """Start waiting requests in free slots; return the logits (1, V) of each one's first token."""
        logits = []
        while self._waiting and self._free:
            logits.append(self._prefill(self._waiting[0].prompt, self._free[-1]))  # if it raises, the request waits
            self._running[self._free.pop()] = self._waiting.popleft()
        return logits

    def _prefill(self, prompt: tuple[int, ...], slot: int) -> Tensor:
        """Put a prompt into a slot; return the logits (1, V) of the token after it."""
        if prompt != self._prefix:
            self._prefix = None
            self._cache.reset(self._prefix_slot)
            self._prefix_logits = self._forward([list(prompt)], [self._prefix_slot]).clone()
            self._prefix = prompt
        self._cache.copy(self._prefix_slot, slot)
        return self._prefix_logits

    def _postprocess(self, slots: list[int], logits: Tensor) -> list[Event]:
        """Choose the next token of each request from logits (B, V) and add it to the request."""
        tokens = self._choose(logits, [self._running[slot] for slot in slots])
        logprobs = torch.log_softmax(logits, -1).gather(-1, tokens.to(logits.device)[:, None]).squeeze(-1)
        return [self._advance(*row) for row in zip(slots, tokens.tolist(), logprobs.tolist(), strict=True)]

    def _choose(self, logits: Tensor, requests: list[_Request]) -> Tensor:
        """Return the next token (B,) of each request, on the CPU: forced by a tool, or sampled."""
        tokens = torch.zeros(len(requests), dtype=torch.int64)
        groups: dict[tuple[float, int | None, float | None], list[int]] = {}  # rows with the same parameters
        for row, request in enumerate(requests):
            p = request.params
            if request.tool_use.forced:
                tokens[row] = request.tool_use.forced[0]
            else:
                groups.setdefault((p.temperature, p.top_k, p.top_p), []).append(row)
        for sampling, rows in groups.items():
            draws = [torch.rand(1, generator=requests[row].generator, dtype=torch.float64) for row in rows]
            tokens[rows] = sample(logits[rows], torch.cat(draws).to(logits.device), *sampling).cpu()
        return tokens

    def _advance(self, slot: int, token: int, logprob: float) -> Event:
        """Add a token to a request, and free its slot when it has finished."""
        request = self._running[slot]
        sampled = not request.tool_use.forced
        request.tool_use.push(token)
        request.last = token
        request.num_new += 1
        finish: Finish | None = None
        if sampled and token in request.stop_ids:
            finish = "stop"
        elif request.num_new >= request.params.max_new_tokens or int(self._cache.lengths[slot]) >= self.context:
            finish = "length"
        if finish:
            self._leave(slot)
        return Event(request.id, token, logprob, sampled, finish)

    def _leave(self, slot: int) -> None:
        del self._running[slot]
        self._cache.reset(slot)
        self._free.append(slot)

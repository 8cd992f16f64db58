"""The engine: requests enter and leave a running batch at any step. Chat, rollouts and evaluation all generate with it.

A `step` lets waiting requests in (each prompt is read in a pass of its own), takes every running request one token
further in one batched pass, and returns what happened as events. A request draws from its own random generator, and its
logits come from its own tokens only, so what it says does not depend on which requests run beside it (up to the
rounding of matrix products of different batch sizes).

A tool is a state machine in each request: when the model closes a tool call, the tool's answer is put between
<|output_start|> and <|output_end|> and these tokens are forced, one a step, in place of sampled ones.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from raychat.chat.tools import calculator
from raychat.engine.sampling import DEFAULT, SamplingParams, sample
from raychat.model.cache import KVCache
from raychat.tokenizer import Tokenizer

Finish = Literal["stop", "length"]


class Model(Protocol):
    """What the engine needs of a model."""

    config: Any  # .sequence_len (the context) and .vocab_size

    def __call__(self, idx: Tensor, cache: Any) -> Tensor: ...
    def new_cache(self, num_slots: int) -> KVCache: ...
    def state_dict(self) -> Mapping[str, Tensor]: ...
    def parameters(self) -> Iterable[Tensor]: ...


class Event(NamedTuple):
    """One more token of a request."""

    id: int  # of the request
    token: int
    logprob: float  # of the token under the model itself: temperature 1, nothing cut off, whatever it was sampled with
    sampled: bool  # False = forced by a tool
    finish: Finish | None  # set with the request's last token: it was a stop token, or there is no room for more


class Completion(NamedTuple):
    """A finished request: one entry per token, the stop token included; `logprobs` and `sampled` as in `Event`."""

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
    num_new: int = 0
    last: int = -1  # newest token, not in the cache yet
    call: list[int] | None = None  # tokens of the tool call being written; None = not in one
    forced: deque[int] = field(default_factory=deque)  # the tool's answer, still to be put into the sequence


class Engine:
    """Continue many token sequences at once with one model and one key/value cache.

    model: anything with the face of `Model`. max_sequences: requests that run at once; more wait their turn. tool: gets
    the text of a tool call; where it returns None, no answer is put in. Not thread-safe: one thread owns an engine.

    Raises:
        ValueError: the tokenizer is not the model's.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        max_sequences: int = 16,
        tool: Callable[[str], str | None] = calculator,
    ) -> None:
        if max_sequences < 1:
            raise ValueError(f"max_sequences is {max_sequences}; expected a whole number >= 1")
        if tokenizer.vocab_size != model.config.vocab_size:
            got, expected = tokenizer.vocab_size, model.config.vocab_size
            raise ValueError(f"the tokenizer is not the model's: it has {got} tokens, expected {expected}")
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self.context = int(model.config.sequence_len)
        self._device = next(iter(model.parameters())).device
        # One slot more than requests: it holds the prompt read last, from which further samples of it are copied.
        self._cache = model.new_cache(max_sequences + 1)
        self._prefix_slot = max_sequences
        self._prefix: tuple[int, ...] | None = None
        self._prefix_logits = torch.empty(0)
        self._free = list(reversed(range(max_sequences)))
        self._waiting: deque[_Request] = deque()
        self._running: dict[int, _Request] = {}  # by slot
        self._num_added = 0

    # ---------------------------------------------------------------------------------------------- requests

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    def add(self, prompt: Sequence[int], params: SamplingParams = DEFAULT) -> int:
        """Let a request join at the next step with a free slot; return its id.

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
        generator = torch.Generator()
        if params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(params.seed)
        self._num_added += 1
        self._waiting.append(_Request(self._num_added, prompt, params, frozenset(stop), generator))
        return self._num_added

    def cancel(self, id: int) -> None:
        """Drop a request: no more events of it. Nothing happens when it has already finished."""
        self._waiting = deque(r for r in self._waiting if r.id != id)
        for slot in [slot for slot, r in self._running.items() if r.id == id]:
            self._leave(slot)

    def load_weights(self, weights: Mapping[str, Tensor | np.ndarray]) -> None:
        """Copy new weights into the model, in place. Running requests go on with them from what their cache holds.

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
            for name, tensor in own.items():
                value = weights[name]
                tensor.copy_(torch.tensor(value) if isinstance(value, np.ndarray) else value)
        self._prefix = None

    # ---------------------------------------------------------------------------------------------- generation

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let waiting requests in and take every running one a token further; return one event for each of them."""
        running = list(self._running)
        logits = [self._decode(running)] if running else []
        while self._waiting and self._free:
            slot, request = self._free[-1], self._waiting[0]
            logits.append(self._enter(request, slot))  # may raise or be interrupted: the request then still waits
            self._running[self._free.pop()] = self._waiting.popleft()
            running.append(slot)
        if not running:
            return []
        rows = torch.cat(logits)
        tokens = self._choose(rows, [self._running[slot] for slot in running])
        logprobs = torch.log_softmax(rows, -1).gather(-1, tokens.to(rows.device)[:, None]).squeeze(-1).tolist()
        return [self._advance(*row) for row in zip(running, tokens.tolist(), logprobs, strict=True)]

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] = DEFAULT
    ) -> list[Completion]:
        """Continue all prompts to their ends; return a completion for each, in order.

        Neighbouring equal prompts are read once: n samples of a prompt are the prompt n times. params: one for each
        prompt, or one for all, whose seed is then the first one's; the next count up from it, so that samples differ.

        Raises:
            ValueError: as `add`, before anything is generated; or other requests are in flight.
        """
        if self.busy:
            raise ValueError("other requests are in flight; generate needs an idle engine: use add and step")
        if isinstance(params, SamplingParams):
            seed = params.seed
            params = [params if seed is None else replace(params, seed=seed + i) for i in range(len(prompts))]
        if len(params) != len(prompts):
            raise ValueError(f"got {len(params)} sampling parameters for {len(prompts)} prompts; expected one for each")
        try:
            done = {self.add(p, q): Completion([], [], [], "length") for p, q in zip(prompts, params, strict=True)}
        except ValueError:
            self._waiting.clear()
            raise
        while self._waiting or self._running:
            for event in self.step():
                completion = done[event.id]
                completion.ids.append(event.token)
                completion.logprobs.append(event.logprob)
                completion.sampled.append(event.sampled)
                if event.finish:
                    done[event.id] = completion._replace(finish=event.finish)
        return list(done.values())

    # ---------------------------------------------------------------------------------------------- inside a step

    def _decode(self, slots: list[int]) -> Tensor:
        """Feed every running request its newest token; return the next logits (B, V)."""
        idx = torch.tensor([[self._running[slot].last] for slot in slots], device=self._device)
        return self.model(idx, self._cache.at(torch.tensor(slots)))[:, -1]

    def _enter(self, request: _Request, slot: int) -> Tensor:
        """Put a request's prompt into a slot; return the logits (1, V) of its first token."""
        if request.prompt != self._prefix:
            self._prefix = None
            self._cache.reset(self._prefix_slot)
            idx = torch.tensor([request.prompt], device=self._device)
            self._prefix_logits = self.model(idx, self._cache.at(torch.tensor([self._prefix_slot])))[:, -1].clone()
            self._prefix = request.prompt
        self._cache.copy(self._prefix_slot, slot)
        return self._prefix_logits

    def _choose(self, logits: Tensor, requests: list[_Request]) -> Tensor:
        """Return the next token (B,) of every request, on the CPU: forced by a tool, or sampled."""
        tokens = torch.zeros(len(requests), dtype=torch.int64)
        groups: dict[tuple[float, int | None, float | None], list[int]] = {}  # rows to be sampled alike
        for row, request in enumerate(requests):
            if request.forced:
                tokens[row] = request.forced[0]
            else:
                p = request.params
                groups.setdefault((p.temperature, p.top_k, p.top_p), []).append(row)
        for (temperature, top_k, top_p), rows in groups.items():
            draws = [torch.rand(1, generator=requests[row].generator, dtype=torch.float64) for row in rows]
            uniforms = torch.cat(draws).to(logits.device)
            tokens[rows] = sample(logits[rows], uniforms, temperature=temperature, top_k=top_k, top_p=top_p).cpu()
        return tokens

    def _advance(self, slot: int, token: int, logprob: float) -> Event:
        """Add a token to a request, run its tool when the token closes a call, and let it leave when it is done."""
        request = self._running[slot]
        sampled = not request.forced
        if sampled:
            self._watch_tool(request, token)
        else:
            request.forced.popleft()
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

    def _watch_tool(self, request: _Request, token: int) -> None:
        special = self.tokenizer.special
        if token == special["<|python_start|>"]:
            request.call = []
        elif token == special["<|python_end|>"] and request.call is not None:
            answer = self.tool(self.tokenizer.decode(request.call))
            request.call = None
            if answer is not None:
                tokens = self.tokenizer.encode(answer)
                request.forced.extend([special["<|output_start|>"], *tokens, special["<|output_end|>"]])
        elif request.call is not None:
            request.call.append(token)

    def _leave(self, slot: int) -> None:
        del self._running[slot]
        self._cache.reset(slot)
        self._free.append(slot)

"""The engine: requests join and leave a running batch at any step. Chat, rollouts and evaluation generate with it.

A `step` schedules, runs and postprocesses: it reads prompts in chunks beside the requests that decode, in one pass, and
returns an event for every request that got a token. Each request samples with uniform numbers of its own, from logits
that depend on its own tokens only. So its tokens do not depend on the requests beside it, up to the rounding of matrix
products of different batch sizes.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from raychat.chat.tools import calculator
from raychat.device import default_device, to_device
from raychat.engine.graphs import DecodeGraphs
from raychat.engine.logprobs import logprobs_table, score
from raychat.engine.request import Completion, EngineStats, Event, Finish, PromptLogprob, Request
from raychat.engine.sampling import DEFAULT, Draws, SamplingParams, parameters, penalise, sample, uniforms
from raychat.engine.scheduler import Scheduler, StepPlan
from raychat.engine.tool import Tool, ToolUse
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

_STEP_TOKENS = {"cpu": 512, "cuda": 4096}  # of one step: what a request that decodes waits for at most


class Engine:
    """Continue many token sequences at once with one model and one key/value cache.

    An engine is not thread-safe: one thread owns it.

    Args:
        max_sequences: requests that run at once; more wait.
        tool: gets the text of a tool call; the engine forces its answer into the sequence, unless it is None.
        cache_tokens: room of the cache in tokens; None = a whole context in every slot.
        step_tokens: tokens of a step at most; None = by the device.

    Raises:
        ValueError: a number is too small, or the tokenizer is not the model's.
    """

    @classmethod
    def load(cls, path: str, max_sequences: int) -> Self:
        """Make an engine with the model of a checkpoint, on this process's device."""
        from raychat.checkpoint import load_model, load_tokenizer  # here: a model in memory needs no safetensors

        return cls(load_model(path, default_device())[0].eval(), load_tokenizer(path), max_sequences=max_sequences)

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        max_sequences: int = 16,
        tool: Tool = calculator,
        cache_tokens: int | None = None,
        step_tokens: int | None = None,
    ) -> None:
        model.pack()
        self.model, self.tokenizer, self.tool = model, tokenizer, tool
        self.context = int(model.config.sequence_len)
        for name, number, least in (("max_sequences", max_sequences, 1), ("cache_tokens", cache_tokens, self.context)):
            if number is not None and number < least:
                raise ValueError(f"{name} is {number}; expected a whole number >= {least}")
        if tokenizer.vocab_size != model.config.vocab_size:
            got = f"it has {tokenizer.vocab_size} tokens, expected {model.config.vocab_size}"
            raise ValueError(f"the tokenizer is not the model's: {got}")
        self._device = model.device
        self._scheduler = Scheduler(
            model.new_cache(1, 1),
            max_len=self.context,
            max_sequences=max_sequences,
            cache_tokens=cache_tokens,
            step_tokens=step_tokens or _STEP_TOKENS.get(self._device.type, 512),
        )
        self._graphs = DecodeGraphs.of(model, self._scheduler.cache, max_sequences)
        turn_end = tokenizer.special.get("<|assistant_end|>", tokenizer.bos)
        self._default_stop = (turn_end, tokenizer.bos)
        self._requests: dict[int, Request] = {}  # waiting and running
        self._num_added = self._num_generated = 0

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._requests)

    def add(self, prompt: Sequence[int], params: SamplingParams = DEFAULT) -> int:
        """Queue a request for the next step that has room for it; return its id.

        Raises:
            ValueError: the prompt is empty, longer than the model's context, or holds ids outside the vocabulary; so
                does the logit bias.
        """
        tokens = np.array(prompt, dtype=np.int64)
        vocab_size = self.tokenizer.vocab_size
        if not 1 <= len(tokens) <= self.context:
            raise ValueError(f"the prompt has {len(tokens)} tokens; expected 1 to {self.context}, the model's context")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(f"the prompt holds ids outside the vocabulary of {vocab_size}")
        if any(id >= vocab_size for id, _ in params.logit_bias):
            raise ValueError(f"logit_bias names ids outside the vocabulary of {vocab_size}")
        self._num_added += 1
        room = min(len(tokens) + params.max_new_tokens, self.context + 1)
        self._requests[self._num_added] = request = Request(
            id=self._num_added,
            params=params,
            tokens=np.pad(tokens, (0, room - len(tokens))),
            length=len(tokens),
            num_prompt=len(tokens),
            stop_ids=frozenset(self._default_stop if params.stop_ids is None else params.stop_ids),
            seed=(secrets.randbits(64) if params.seed is None else params.seed) % 2**64,
            tool_use=ToolUse(self.tokenizer, self.tool),
        )
        self._scheduler.waiting.append(request)
        return self._num_added

    @torch.inference_mode()
    def cancel(self, id: int) -> None:
        """Drop a request: it gets no more events. A request that has finished is ignored."""
        if request := self._requests.pop(id, None):
            self._scheduler.remove(request)

    def stats(self) -> EngineStats:
        """Return what the engine does now and has done."""
        s = self._scheduler
        return EngineStats(
            running=len(s.rows),
            waiting=len(s.waiting),
            cached_tokens=int(s.cache.lengths.sum()),
            cache_tokens=s.cache_tokens,
            prompt_tokens=s.prompt_tokens,
            reused_tokens=s.reused_tokens,
            generated_tokens=self._num_generated,
            preemptions=s.preemptions,
        )

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Continue with new weights, copied into the model in place; the model's own, changed elsewhere, need no copy.

        Raises:
            ValueError: names or shapes are not the model's.
        """
        own = self.model.state_dict()
        shapes, expected = ({k: tuple(t.shape) for k, t in tensors.items()} for tensors in (weights, own))
        for name in sorted(shapes.keys() | expected.keys()):
            if (got := shapes.get(name)) != (want := expected.get(name)):
                raise ValueError(f"the weights are not this model's: {name}: got shape {got}, expected {want}")
        with torch.no_grad():
            for name, value in weights.items():
                if value.data_ptr() != own[name].data_ptr():
                    own[name].copy_(value)
        self._scheduler.forget()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read the next tokens of prompts, give every request that has read its own the next one; return the events.

        Raises:
            FloatingPointError: the model's logits are NaN or infinite.
        """
        plan = self._scheduler.schedule()
        if not plan.singles and not plan.chunks:
            return []
        if self._graphs is not None and not plan.chunks:
            requests = plan.singles
            tokens, logits = self._graphs(_newest(plan), _draws(requests))
            if any(request.params.changes_logits for request in requests):
                tokens = self._choose(requests, logits)
        else:
            requests, logits = self._run(plan)
            if not requests:
                return []
            tokens = self._choose(requests, logits)
        return self._postprocess(requests, tokens, logits)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] = DEFAULT
    ) -> list[Completion]:
        """Continue all prompts to their ends; return a completion for each, in order.

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
            while self._requests:
                for event in self.step():
                    completion = done[event.id]
                    completion.ids.append(event.token)
                    completion.sampled.append(event.sampled)
                    if event.logprob is not None:
                        completion.logprobs.append(event.logprob)
                    if event.finish:
                        done[event.id] = completion._replace(finish=event.finish)
        finally:
            for id in done:  # nothing is left to cancel, except after an error or an interrupt
                self.cancel(id)
        return list(done.values())

    def _run(self, plan: StepPlan) -> tuple[list[Request], Tensor]:
        """Read the plan's tokens; return the requests that have read all of theirs, and their logits (R, V)."""
        cache = self._scheduler.cache
        past = cache.begin(_newest(plan), [chunk for _, chunk in plan.chunks])
        x = self.model.hidden(past.ids[None], past)[0]
        past.finish()
        if not plan.chunks:
            return plan.singles, self.model.logits(x)
        requests, rows, end = list(plan.singles), list(range(len(plan.singles))), len(plan.singles)
        for request, chunk in plan.chunks:
            start, end = end, end + len(chunk.tokens)
            if request.params.prompt_logprobs is not None and not request.num_new:
                self._score_prompt(request, x[start:end])
            if cache.lengths[chunk.slot] == request.length:
                requests.append(request)
                rows.append(end - 1)
        return requests, self.model.logits(x[rows])

    def _score_prompt(self, request: Request, x: Tensor) -> None:
        """Add the log-probabilities of the prompt's tokens after a chunk's hidden states (N, C)."""
        done = len(request.prompt_logprobs)
        targets = request.tokens[done + 1 : min(done + 1 + len(x), request.num_prompt)]
        if len(targets):
            ids = to_device(targets, self._device)
            table = logprobs_table(self.model.logits(x[: len(targets)]), ids, request.params.prompt_logprobs or 0)
            request.prompt_logprobs += [PromptLogprob(*score(row)) for row in table.tolist()]

    def _postprocess(self, requests: list[Request], tokens: Tensor, logits: Tensor) -> list[Event]:
        """Add the next token (R,) of each request, chosen from logits (R, V), to the request."""
        table = tokens[:, None].double()
        asked = [request.params.logprobs for request in requests if request.params.logprobs is not None]
        if asked:
            table = torch.cat((table, logprobs_table(logits, tokens.clamp(min=0), max(asked))), -1)
        rows = table.tolist()  # the only time that a step waits for the device
        if min(rows)[0] < 0:
            raise FloatingPointError("the model's logits are NaN or infinite: its weights are broken")
        return [self._advance(request, int(row[0]), row[1:]) for request, row in zip(requests, rows, strict=True)]

    def _choose(self, requests: list[Request], logits: Tensor) -> Tensor:
        """Return the next token (R,) of each request: sampled, or forced by a tool."""
        changed = [row for row, request in enumerate(requests) if request.params.changes_logits]
        if changed:
            logits = logits.clone()
            for row in changed:
                r = requests[row]
                prompt, new = (to_device(x, self._device) for x in np.split(r.known, [r.num_prompt]))
                penalise(logits[row], r.params, prompt, new)
        return sample(logits, Draws.of(to_device(_draws(requests), self._device)))

    def _advance(self, request: Request, token: int, scores: list[float]) -> Event:
        """Add a token to a request, and end the request when it has finished. scores: as `score` reads them."""
        sampled = not request.tool_use.forced
        prompt = None
        if not request.num_new and request.params.prompt_logprobs is not None:
            prompt = tuple(request.prompt_logprobs)
        request.tool_use.push(token)
        request.tokens[request.length] = token
        request.length += 1
        self._num_generated += 1
        finish: Finish | None = None
        if sampled and token in request.stop_ids:
            finish = "stop"
        elif request.length == len(request.tokens):
            finish = "length"
        if finish:
            self.cancel(request.id)
        wanted = request.params.logprobs
        logprob, top = (None, ()) if wanted is None else score(scores)
        return Event(request.id, token, logprob, sampled, finish, top[:wanted], prompt)


def _newest(plan: StepPlan) -> np.ndarray:
    """Return the token (B,) int64 that each request with one token to read has got last."""
    return np.array([request.tokens[request.length - 1] for request in plan.singles], dtype=np.int64)


def _draws(requests: list[Request]) -> np.ndarray:
    """Return what the draw of each request's next token needs, (R, 6) fp64, as `Draws.of` reads it."""
    seeds = np.array([request.seed for request in requests], dtype=np.uint64)
    counters = np.array([request.num_new for request in requests], dtype=np.uint64)
    forced = np.array([request.tool_use.forced[0] if request.tool_use.forced else -1 for request in requests])
    params = parameters([request.params for request in requests])
    return np.column_stack((forced, uniforms(seeds, counters), params))

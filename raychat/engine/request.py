"""What enters the engine and what leaves it."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from raychat.engine.sampling import SamplingParams
from raychat.engine.tool import ToolUse

Finish = Literal["stop", "length"]
Alternatives = tuple[tuple[int, float], ...]  # token ids with their log-probabilities, the likeliest first


class PromptLogprob(NamedTuple):
    """How likely a token of the prompt was after those before it."""

    logprob: float
    top: Alternatives


class Event(NamedTuple):
    """The next token of a request. Log-probabilities are the model's own, whatever the sampling parameters."""

    id: int  # of the request
    token: int
    logprob: float | None  # None = not asked for
    sampled: bool  # False = forced by a tool
    finish: Finish | None  # set with the last token: "stop" = a stop token, "length" = a limit of tokens or the context
    top: Alternatives = ()  # as many as SamplingParams.logprobs
    prompt: tuple[PromptLogprob, ...] | None = None  # with the first token, where asked for: from the second on


class Completion(NamedTuple):
    """A finished request, with one entry per token, the stop token included; the fields are those of `Event`."""

    ids: list[int]
    logprobs: list[float]  # empty where not asked for
    sampled: list[bool]
    finish: Finish


class EngineStats(NamedTuple):
    """What an engine does now, and what it has done since it was made."""

    running: int  # requests
    waiting: int  # requests
    cached_tokens: int  # that the cache holds
    cache_tokens: int  # that it has room for
    prompt_tokens: int  # of all requests that have begun
    reused_tokens: int  # of these, found in the cache
    generated_tokens: int
    preemptions: int  # requests that lost their place for want of memory, and began anew


@dataclass(eq=False)
class Request:
    """A request on its way through the engine."""

    id: int
    params: SamplingParams
    tokens: np.ndarray  # int64, room for all tokens it can have: the prompt, then what was generated
    length: int  # tokens so far
    num_prompt: int  # of them
    stop_ids: frozenset[int]
    seed: int  # of 64 bits
    tool_use: ToolUse
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)

    @property
    def known(self) -> np.ndarray:
        """The tokens so far."""
        return self.tokens[: self.length]

    @property
    def num_new(self) -> int:
        """Tokens generated so far."""
        return self.length - self.num_prompt

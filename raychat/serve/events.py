"""Write answers in the format of the OpenAI API: whole, or as server-sent events.

Events are put together from JSON by hand: one is written for every few tokens of every stream.
"""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from raychat.engine.request import Finish
from raychat.serve.answers import ChatCompletion, TextCompletion, TokenUsage
from raychat.serve.types import Delta, Failure, TokenLogprob

DONE = "data: [DONE]\n\n"
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Gathered(NamedTuple):
    """All deltas of one choice together."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish


class Tally:
    """Count the tokens of an answer from its deltas."""

    def __init__(self) -> None:
        self._prompt_tokens = 0
        self._completion_tokens: dict[int, int] = {}  # by choice

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        self._prompt_tokens = delta.prompt_tokens
        self._completion_tokens[delta.choice] = delta.completion_tokens

    @property
    def longest(self) -> int:
        """The tokens of the longest choice so far."""
        return max(self._completion_tokens.values(), default=0)

    def usage(self) -> TokenUsage:
        """Return the tokens of the answer so far."""
        prompt, completion = self._prompt_tokens, sum(self._completion_tokens.values())
        return TokenUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Writer(Protocol):
    """How one kind of answer is written."""

    def whole(self, choices: Sequence[Gathered], usage: TokenUsage) -> ChatCompletion | TextCompletion: ...
    def events(self, delta: Delta) -> str: ...  # server-sent events, those of one delta together
    def last(self, usage: TokenUsage) -> str: ...  # the end of the stream


class _Stream:
    """Put choices into server-sent events. with_usage: the last event carries the usage, and all others null."""

    def __init__(self, head: dict[str, Any], with_usage: bool) -> None:
        self._before = f'data: {_dumps(head)[:-1]},"choices":['
        self._after = '],"usage":null}\n\n' if with_usage else "]}\n\n"
        self._with_usage = with_usage

    def event(self, choice: str) -> str:
        return f"{self._before}{choice}{self._after}"

    def last(self, usage: TokenUsage) -> str:
        return f'{self._before}],"usage":{_dumps(usage.model_dump())}}}\n\n{DONE}' if self._with_usage else DONE


class ChatWriter:
    """Write the answer to a conversation."""

    def __init__(self, model: str, with_usage: bool = False) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._stream = _Stream({**self._head, "object": "chat.completion.chunk"}, with_usage)
        self._parts: dict[int, str] = {}  # by choice: the part of the text that its last event belongs to
        self.last = self._stream.last

    def whole(self, choices: Sequence[Gathered], usage: TokenUsage) -> ChatCompletion:
        """Return a whole answer."""
        written = [
            {
                "index": index,
                "message": {"content": choice.text},
                "logprobs": _chat_logprobs(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return ChatCompletion.model_validate({**self._head, "choices": written, "usage": usage})

    def events(self, delta: Delta) -> str:
        """Return a delta as events; a choice begins with its role and ends with its finish reason."""
        index, events = delta.choice, ""
        if index not in self._parts:
            events, self._parts[index] = self._event(index, '{"role":"assistant","content":""}'), "text"
        if delta.text or delta.logprobs:
            content, part = f'{{"content":{_dumps(delta.text)}', ""
            if delta.text and delta.part != self._parts[index]:
                self._parts[index] = delta.part
                part = f',"raychat_part":"{delta.part}"'
            logprobs = _dumps(_chat_logprobs(delta.logprobs)) if delta.logprobs else "null"
            events += self._event(index, f"{content}{part}}}", logprobs)
        return events + (self._event(index, "{}", finish=_dumps(delta.finish)) if delta.finish else "")

    def _event(self, index: int, delta: str, logprobs: str = "null", finish: str = "null") -> str:
        return self._stream.event(f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}}}')


class TextWriter:
    """Write the continuations of prompts."""

    def __init__(self, model: str, with_usage: bool = False) -> None:
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._stream = _Stream({**self._head, "object": "text_completion"}, with_usage)
        self.last = self._stream.last

    def whole(self, choices: Sequence[Gathered], usage: TokenUsage) -> TextCompletion:
        """Return a whole answer."""
        written = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": _text_logprobs(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return TextCompletion.model_validate({**self._head, "choices": written, "usage": usage})

    def events(self, delta: Delta) -> str:
        """Return a delta as an event, or nothing for one that adds nothing."""
        if not (delta.text or delta.logprobs or delta.finish):
            return ""
        logprobs, finish = _dumps(_text_logprobs(delta.logprobs)), _dumps(delta.finish)
        return self._stream.event(
            f'{{"index":{delta.choice},"text":{_dumps(delta.text)},"logprobs":{logprobs},"finish_reason":{finish}}}'
        )


def error_event(failure: Failure) -> str:
    """Return the event that ends a stream which broke off."""
    return f"data: {_dumps(failure.body())}\n\n"


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Return log-probabilities as a chat answer has them, None where there are none."""

    def fields(token: TokenLogprob) -> dict[str, Any]:
        return {"token": token.token, "bytes": list(token.bytes), "logprob": token.logprob}

    content = [{**fields(token), "top_logprobs": [fields(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None} if tokens else None


def _text_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Return log-probabilities as lists, None where there are none.

    The likeliest tokens always have the token itself among them, as an extra entry if need be.
    """
    if not tokens:
        return None
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None
            if token.logprob is None
            else {other.token: other.logprob for other in token.top} | {token.token: token.logprob}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }

"""Requests and errors of the OpenAI API, as far as raychat serves it.

`top_k` is an extension that vLLM and others share.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raychat.chat.notation import content_of
from raychat.chat.template import Message
from raychat.engine.request import Finish

MAX_STOP_STRINGS = 4
StopString = Annotated[str, Field(min_length=1)]

# Fields that clients send although raychat does not serve them. They are accepted at null and at these values, which
# ask for nothing. Any other value is refused: an answer that ignores part of a request is worse than an error.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "refusal": (),  # from here on: fields of an earlier answer that a client sends back
    "annotations": ([],),
    "tool_calls": ([],),
}
# Fields that do not concern the answer.
_IGNORED = ("user", "metadata", "store", "name", "safety_identifier", "prompt_cache_key")


class _Strict(BaseModel):
    """Refuse unknown fields, unless they are null, neutral or without effect."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _refuse_unserved_fields(self) -> "_Strict":
        for name, value in (self.model_extra or {}).items():
            neutral = _NEUTRAL.get(name, ())
            if value is not None and name not in _IGNORED and value not in neutral:
                expected = " or ".join(map(json.dumps, neutral))
                hint = f"got {json.dumps(value)}, expected {expected}" if expected else "unknown or not supported"
                raise _unsupported(name, hint)
        return self


def _unsupported(name: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported", "{param}: {hint}", {"param": name, "hint": hint})


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _unsupported(name, f"got {json.dumps(value)}, expected a string or a list")
    return value


class TextPart(BaseModel):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart]  # or a string

    @field_validator("content", mode="before")
    @classmethod
    def _one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else _list("content", content)

    def for_template(self) -> Message:
        """Return the message as `raychat.chat` takes it: tool calls in an earlier answer become parts again."""
        text = "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content_of(text) if role == "assistant" else text}


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None  # the id that /v1/models lists, or "raychat"; None = the same model
    stream: bool = False
    stream_options: StreamOptions | None = None  # None = no usage
    temperature: float | None = Field(default=None, ge=0, le=2)  # None = 1
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)  # None = until the context is full
    max_completion_tokens: int | None = Field(default=None, ge=1)  # newer name of max_tokens, wins over it
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[StopString] = Field(default=[], max_length=MAX_STOP_STRINGS)  # or a string, or null

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, stop: Any) -> Any:
        return [] if stop is None else [stop] if isinstance(stop, str) else _list("stop", stop)


class Delta(NamedTuple):
    """What an answer has gained since the last delta, on its way from the model to HTTP."""

    text: str  # never ends inside a character; may be empty
    prompt_tokens: int
    completion_tokens: int  # of the answer so far, tool calls and stop token included
    finish: Finish | None  # set in the last delta


class Failure(NamedTuple):
    """Why an answer did not begin or broke off; takes the place of the last delta."""

    status: int  # of HTTP
    message: str
    param: str | None = None  # field of the request that is wrong
    code: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the error as the OpenAI API words it."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else server
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ModelCard(BaseModel):
    """The served model, as clients see it."""

    id: str  # <run>-<stage>
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "raychat"
    max_model_len: int  # context in tokens, as vLLM calls it


def no_such_model(name: str, card: ModelCard) -> Failure:
    """Return the error for a request to a model that is not served here."""
    message = f"the model {name!r} does not exist; this server has {card.id!r}"
    return Failure(404, message, "model", "model_not_found")

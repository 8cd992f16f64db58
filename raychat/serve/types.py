"""Requests of the OpenAI API, as far as raychat serves it, and what travels back from a model to HTTP.

`top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `add_special_tokens`, /tokenize and /detokenize are extensions
that vLLM has too.

Source: https://platform.openai.com/docs/api-reference, https://docs.vllm.ai/en/latest/serving/openai_compatible_server
"""

import itertools
import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raychat.engine.request import Finish

MAX_STOP_STRINGS = 16  # the OpenAI API has 4, but tasks of lm-eval send more
MAX_CHOICES = 128  # answers to one request: n, times the prompts of a completion request
MAX_SHOWN = 100  # characters of a wrong value in an error
DEFAULT_NAMES = (None, "raychat")  # of the model that /v1/models lists first

StopString = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
TokenKey = Annotated[str, Field(pattern="^[0-9]{1,9}$")]  # a token id as the key of a JSON object
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]

# Fields that clients send although raychat does not serve them. They are accepted at null and at these values, which
# ask for nothing. Any other value is refused: an answer that ignores part of a request is worse than an error.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
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
                hint = f"got {_shown(value)}, expected {expected}" if expected else "unknown or not supported"
                raise unsupported(name[:MAX_SHOWN], hint)
        return self


def unsupported(name: str, hint: str) -> PydanticCustomError:
    """Return the error for a field that is there, but cannot be served."""
    return PydanticCustomError("unsupported", "{param}: {hint}", {"param": name, "hint": hint})


def _shown(value: Any) -> str:
    text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), MAX_SHOWN + 1))  # not all of a large one
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise unsupported(name, f"got {_shown(value)}, expected a string or a list")
    return value


def _or_text(schema: dict[str, Any]) -> None:
    """Let the OpenAPI document say that a text, or null where that is meant, may stand in place of a list."""
    items = {key: schema.pop(key) for key in ("type", "items", "maxItems") if key in schema}
    schema["anyOf"] = [{"type": "string", "minLength": 1}, items, {"type": "null"}]


class StreamOptions(_Strict):
    """What a streamed answer holds besides its text."""

    include_usage: bool = False


class SamplingRequest(_Strict):
    """What requests for a chat answer and for a completion share: the model, and how it samples."""

    model: str | None = None  # an id of /v1/models; None or "raychat" = the first of them
    stream: bool = False
    stream_options: StreamOptions | None = None  # None = no usage
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)  # answers; None = 1
    temperature: float | None = Field(default=None, ge=0, le=2)  # None = 1
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)  # -1 or 0 = all
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: dict[TokenKey, Bias] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: list[StopString] = Field(default=[], max_length=MAX_STOP_STRINGS, json_schema_extra=_or_text)
    ignore_eos: bool = False  # generate until max_tokens

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, stop: Any) -> Any:
        return [] if stop is None else [stop] if isinstance(stop, str) else _list("stop", stop)


class TextPart(BaseModel):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart] = Field(fail_fast=True, json_schema_extra=_or_text)

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, message: Any) -> Any:
        if isinstance(message, dict) and message.get("role") == "assistant" and message.get("content", "") is None:
            return {**message, "content": ""}
        return message

    @field_validator("content", mode="before")
    @classmethod
    def _one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else _list("content", content)

    @property
    def text(self) -> str:
        """The parts of the content together."""
        return "".join(part.text for part in self.content)


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class ChatRequest(SamplingRequest):
    """The body of POST /v1/chat/completions."""

    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1)  # None = until the context is full
    max_completion_tokens: int | None = Field(default=None, ge=1)  # newer name of max_tokens, wins over it
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)  # likeliest tokens shown beside each token

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise unsupported("top_logprobs", "expected logprobs to be true with it")
        return self


Texts = Annotated[list[str], Field(fail_fast=True)]
Prompt = str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]


class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions."""

    prompt: Prompt
    max_tokens: int | None = Field(default=None, ge=0)  # None = 16; 0 = no new tokens, to score the prompt (with echo)
    echo: bool = False  # begin the answer with the prompt
    logprobs: int | None = Field(default=None, ge=0, le=5)  # likeliest tokens shown beside each token
    add_special_tokens: bool = True  # begin a prompt of text with <|bos|>, as every document that the model has read

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_error(cls, prompt: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(prompt)
        except ValidationError:
            hint = f"got {_shown(prompt)}, expected a text, a list of texts, a list of token ids, or a list of those"
            raise unsupported("prompt", hint) from None

    @model_validator(mode="after")
    def _bounded(self) -> "CompletionRequest":
        number = len(self.prompts) * (self.n or 1)
        if not 1 <= number <= MAX_CHOICES:
            raise unsupported("prompt", f"asks for {number} answers, n included; expected 1 to {MAX_CHOICES}")
        if self.max_tokens == 0 and not self.echo:
            raise unsupported("max_tokens", "got 0, expected at least 1 without echo")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, also where there is one."""
        prompt: Any = self.prompt
        one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        return [prompt] if one else prompt


class TokenizeRequest(_Strict):
    """The body of POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True  # begin the prompt with <|bos|>, as /v1/completions does
    add_generation_prompt: bool = True  # end the messages with <|assistant_start|>, as /v1/chat/completions does
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise unsupported("prompt", "expected either prompt or messages")
        return self


class DetokenizeRequest(_Strict):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: TokenIds


PartType = Literal["text", "python", "python_output"]


class TokenLogprob(NamedTuple):
    """How likely a token was, and the likeliest tokens at its place."""

    token: str  # its text; "bytes:\\xNN..." where its bytes alone are no text
    bytes: bytes
    logprob: float | None  # None = the first token of a prompt
    top: tuple["TokenLogprob", ...] = ()
    offset: int = 0  # in the answer's text, in characters


class Delta(NamedTuple):
    """What one choice of an answer has gained since its last delta, on its way from the model to HTTP."""

    text: str  # never ends inside a character; may be empty
    prompt_tokens: int  # of the whole request
    completion_tokens: int  # of this choice so far, tool calls and stop token included
    finish: Finish | None  # set in the last delta of a choice
    choice: int = 0  # its number
    part: PartType = "text"  # that the text belongs to
    logprobs: tuple[TokenLogprob, ...] = ()
    held_s: float = 0.0  # that a whole answer's first delta has waited in its replica for the last one


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

"""Answers of the API: what is sent, and what its OpenAPI document says."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from raychat.engine.request import Finish
from raychat.serve.types import Failure


class ModelCard(BaseModel):
    """A served model, as clients see it."""

    id: str  # <run>-<stage> = the newest checkpoint of the stage; <run>-<stage>@<step> = a saved step
    object: Literal["model"] = "model"
    created: int  # Unix time, in seconds
    owned_by: str = "raychat"
    root: str | None = None
    parent: str | None = None
    max_model_len: int  # context in tokens, as vLLM calls it
    run: str | None = None
    stage: str | None = None  # base, mid, sft or rl
    step: int | None = None
    latest: bool = True  # the newest checkpoint of its stage
    suggestions: list[str] = []  # what the model answered well when its stage was evaluated


class ModelList(BaseModel):
    """The answer of GET /v1/models; the first model is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def no_such_model(name: str, cards: Sequence[ModelCard]) -> Failure:
    """Return the error for a request to a model that is not served here."""
    served = ", ".join(repr(card.id) for card in cards[:10])
    more = f" and {len(cards) - 10} more" if len(cards) > 10 else ""
    message = f"the model {name[:100]!r} does not exist; this server has {served}{more}"
    return Failure(404, message, "model", "model_not_found")


class Status(BaseModel):
    """The answer of GET /health and /ready."""

    status: Literal["ok"] = "ok"
    model: str  # the default


class TokenizeAnswer(BaseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(BaseModel):
    """The answer of GET /tokenizer_info, which lm-eval asks for."""

    tokenizer_class: Literal["raychat"] = "raychat"
    bos_token: str = "<|bos|>"  # begins every document and conversation
    eos_token: str = "<|assistant_end|>"  # ends an answer


class DetokenizeAnswer(BaseModel):
    """The answer of POST /detokenize."""

    prompt: str


class TokenUsage(BaseModel):
    """The tokens of a request and its answer; those of tool calls and of the end of a turn count too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(BaseModel):
    """A token that could stand at some place, and how likely it was there."""

    token: str
    bytes: list[int]
    logprob: float


class ChatLogprob(Alternative):
    """A token of the answer, with the likeliest tokens at its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """The log-probabilities of a chat answer."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextLogprobs(BaseModel):
    """The log-probabilities of a completion, one entry for each token in every list."""

    tokens: list[str]
    token_logprobs: list[float | None]  # null for the first token of an echoed prompt
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # of the token in the choice's text, in characters


class TextChoice(BaseModel):
    """One of the continuations of a prompt."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextCompletion(BaseModel):
    """The answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class ErrorDetail(BaseModel):
    """What went wrong, and in which field of the request."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer of every request that fails."""

    error: ErrorDetail

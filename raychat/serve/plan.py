"""From a request to its choices: what the engine continues, how it samples, and what of it is shown."""

from collections.abc import Sequence

from raychat.engine.sampling import SamplingParams
from raychat.serve.choices import Choice
from raychat.serve.loop import Work
from raychat.serve.prompts import chat_prompt, completion_prompts
from raychat.serve.types import ChatRequest, CompletionRequest, Failure, SamplingRequest
from raychat.tokenizer import Tokenizer

COMPLETION_TOKENS = 16  # where a completion request does not say how many, as in the OpenAI API


def choices_of(request: ChatRequest | CompletionRequest, tokenizer: Tokenizer, context: int) -> list[Choice] | Failure:
    """Return the choices that a request asks for: `n` for each of its prompts. context: of the model, in tokens."""
    if isinstance(request, ChatRequest):
        return _chat(request, tokenizer, context)
    return _completion(request, tokenizer, context)


def _chat(request: ChatRequest, tokenizer: Tokenizer, context: int) -> list[Choice] | Failure:
    try:
        prompts = [chat_prompt(tokenizer, request.messages)]
    except ValueError as e:
        return Failure(400, str(e), "messages")
    limit = request.max_completion_tokens or request.max_tokens or context + 1
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    params = _params(request, max_new_tokens=limit, logprobs=logprobs)
    return _too_long(prompts, context, "messages") or _each(prompts, params, tokenizer, request.stop)


def _completion(request: CompletionRequest, tokenizer: Tokenizer, context: int) -> list[Choice] | Failure:
    prompts = completion_prompts(tokenizer, request)
    limit = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    params = _params(
        request,
        max_new_tokens=max(limit, 1),  # the engine generates one token at least
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )
    return _too_long(prompts, context, "prompt") or _each(
        prompts, params, tokenizer, request.stop, echo=request.echo, only_echo=limit == 0
    )


def _each(
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    tokenizer: Tokenizer,
    stop: Sequence[str],
    *,
    echo: bool = False,
    only_echo: bool = False,
) -> list[Choice]:
    """Return a choice for each prompt and each of the parameters; see `Choice` for the rest."""
    works, total = [Work(prompt, p) for prompt in prompts for p in params], sum(map(len, prompts))
    return [
        Choice(index, work, tokenizer, total, stop=stop, echo=echo, only_echo=only_echo)
        for index, work in enumerate(works)
    ]


def _too_long(prompts: Sequence[Sequence[int]], context: int, field: str) -> Failure | None:
    longest = max(map(len, prompts))
    if longest <= context:
        return None
    message = f"the prompt has {longest} tokens; expected at most {context}, the context"
    return Failure(400, message, field, "context_length_exceeded")


def _params(
    request: SamplingRequest, *, max_new_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
) -> list[SamplingParams]:
    """Return how each of the `n` samples of a prompt is drawn; their seeds follow one another."""
    seeds = [None if request.seed is None else request.seed + i for i in range(request.n or 1)]
    return [
        SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k if request.top_k and request.top_k > 0 else None,
            top_p=request.top_p,
            max_new_tokens=max_new_tokens,
            seed=None if seed is None else seed % 2**64,
            stop_ids=() if request.ignore_eos else None,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty or 1.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logit_bias=tuple((int(id), bias) for id, bias in (request.logit_bias or {}).items()),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        for seed in seeds
    ]

"""Texts for people to read: continuations by a base model, replies of a chat model."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from raychat.chat import template
from raychat.engine.sampling import SamplingParams
from raychat.evals.evaluation import Evaluation, LoadedModel
from raychat.tokenizer import Tokenizer

NUM_BEGINNINGS = 6
BEGINNING_TOKENS = 12


def beginnings(documents: Iterable[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the first tokens of the first documents as prompts."""
    firsts = (tokenizer.encode(document)[:BEGINNING_TOKENS] for document in islice(documents, NUM_BEGINNINGS))
    return tuple(text for ids in firsts if (text := tokenizer.decode(ids).strip("\ufffd")))


def continuations(prompts: Sequence[str], max_new_tokens: int = 48) -> Evaluation:
    """Describe greedy continuations of texts by a base model; the figure is `samples`."""
    return _samples(_continue, prompts, max_new_tokens)


def replies(questions: Sequence[str], max_new_tokens: int = 128) -> Evaluation:
    """Describe greedy replies of a chat model to questions; the figure is `samples`."""
    return _samples(_reply, questions, max_new_tokens)


def _samples(call: Callable[..., list[str]], prompts: Sequence[str], max_new_tokens: int) -> Evaluation:
    def finish(results: list[list[str]]) -> dict[str, object]:
        return {"samples": [{"prompt": p, "text": t} for p, t in zip(prompts, results[0], strict=True)]}

    return Evaluation("samples", [partial(call, prompts=prompts, max_new_tokens=max_new_tokens)], finish)


def _continue(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    tokenizer = loaded.tokenizer
    rows = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    params = SamplingParams(0.0, max_new_tokens=max_new_tokens, stop_ids=(tokenizer.bos,))
    completions = loaded.engine.generate(rows, params)
    return [tokenizer.decode([i for i in completion.ids if i != tokenizer.bos]) for completion in completions]


def _reply(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    tokenizer = loaded.tokenizer
    rows = [template.render_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    completions = loaded.engine.generate(rows, SamplingParams(0.0, max_new_tokens=max_new_tokens))
    return [template.completion_text(tokenizer, completion.ids) for completion in completions]

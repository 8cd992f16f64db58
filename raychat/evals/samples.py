"""Texts to be read: how a base model goes on, what a chat model answers."""

import functools
import itertools
from collections.abc import Sequence

from raychat.chat import template
from raychat.data.shards import TokenRows
from raychat.engine.sampling import SamplingParams
from raychat.evals.evaluation import Evaluation, LoadedModel
from raychat.tokenizer import Tokenizer

NO_STOP_BUT_BOS = ("<|bos|>",)


def beginnings(rows: TokenRows, tokenizer: Tokenizer, *, num: int = 6, num_tokens: int = 12) -> tuple[str, ...]:
    """Return how the first documents of token shards begin: prompts that any corpus has. Every row begins with one."""
    taken, _ = rows.rows(range(min(num, rows.num_rows())))
    texts = []
    for row in taken.tolist():
        document = itertools.takewhile(lambda token: token != tokenizer.bos, row[1 : num_tokens + 1])
        texts.append(tokenizer.decode(list(document)).strip("\ufffd"))
    return tuple(text for text in texts if text)


def continuations(prompts: Sequence[str], max_new_tokens: int = 48) -> Evaluation:
    """Describe the continuation of texts by a base model, the most likely token each time: `samples`."""
    return _samples(prompts, functools.partial(_continue, prompts=tuple(prompts), max_new_tokens=max_new_tokens))


def replies(questions: Sequence[str], max_new_tokens: int = 128) -> Evaluation:
    """Describe a chat model's answers to questions, the most likely token each time: `samples`."""
    return _samples(questions, functools.partial(_reply, questions=tuple(questions), max_new_tokens=max_new_tokens))


def _samples(prompts: Sequence[str], work: functools.partial[list[str]]) -> Evaluation:
    def finish(results: list[list[str]]) -> dict[str, object]:
        texts = [text for some in results for text in some]
        return {"samples": [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]}

    return Evaluation("samples", [work] if prompts else [], finish)


def _continue(loaded: LoadedModel, prompts: tuple[str, ...], max_new_tokens: int) -> list[str]:
    tokenizer = loaded.tokenizer
    stop = tuple(tokenizer.special[name] for name in NO_STOP_BUT_BOS)
    rows = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    done = loaded.engine.generate(rows, SamplingParams(0.0, max_new_tokens=max_new_tokens, stop_ids=stop))
    return [tokenizer.decode([i for i in completion.ids if i not in stop]) for completion in done]


def _reply(loaded: LoadedModel, questions: tuple[str, ...], max_new_tokens: int) -> list[str]:
    tokenizer = loaded.tokenizer
    rows = [template.render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    done = loaded.engine.generate(rows, SamplingParams(0.0, max_new_tokens=max_new_tokens))
    return [template.completion_text(tokenizer, completion.ids) for completion in done]

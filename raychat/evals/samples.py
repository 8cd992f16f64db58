"""Texts for people to read: continuations by a base model, replies of a chat model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from raychat.chat import template
from raychat.engine.sampling import SamplingParams
from raychat.evals.evaluation import Call, Evaluation, LoadedModel
from raychat.tokenizer import Tokenizer

NUM_BEGINNINGS = 6
BEGINNING_TOKENS = 12


def beginnings(documents: Iterable[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the first tokens of the first documents as prompts."""
    firsts = (tokenizer.encode(document)[:BEGINNING_TOKENS] for document in islice(documents, NUM_BEGINNINGS))
    return tuple(text for ids in firsts if (text := tokenizer.decode(ids).strip("\ufffd")))


def continuations(prompts: Sequence[str], max_new_tokens: int = 48, questions: Sequence[str] = ()) -> Evaluation:
    """Describe greedy continuations of texts, and of questions as plain text, by a base model; they are `samples`.

    A base model goes on with further questions; what it says before them is its answer.
    """
    asked = [{"question": question, "prompt": f"Question: {question}\nAnswer:"} for question in questions]
    return _samples(_continue, [*({"prompt": prompt} for prompt in prompts), *asked], max_new_tokens)


def replies(questions: Sequence[str], max_new_tokens: int = 128) -> Evaluation:
    """Describe greedy replies of a chat model to questions; the figure is `samples`."""
    return _samples(_reply, [{"prompt": question} for question in questions], max_new_tokens)


def sampled(loaded: LoadedModel, start: str, count: int, params: SamplingParams) -> list[str]:
    """Return texts that begin with `start`, each until the model ends it or has added `params.max_new_tokens`.

    A text that fills the context is continued from its end, half a context long. `params.stop_ids` does not matter.

    Raises:
        ValueError: the start does not fit the context.
    """
    tokenizer, half = loaded.tokenizer, loaded.model.config.sequence_len // 2
    ends = tuple(tokenizer.special.values())  # all that is not text
    prompt = tokenizer.encode(start)
    seen, added, running = [prompt] * count, [list[int]() for _ in range(count)], list(range(count))
    while running:
        settings = [_rest(params, i + count * len(added[i]), len(added[i]), ends) for i in running]
        completions = loaded.engine.generate([[tokenizer.bos, *seen[i]] for i in running], settings)
        for i, completion in zip(tuple(running), completions, strict=True):
            added[i] += [token for token in completion.ids if token not in ends]
            seen[i] = [*prompt, *added[i]][-half:]
            if completion.finish == "stop" or len(added[i]) == params.max_new_tokens:
                running.remove(i)
    return [start + tokenizer.decode(ids) for ids in added]


def _rest(params: SamplingParams, number: int, done: int, ends: tuple[int, ...]) -> SamplingParams:
    """Return the settings of the rest of a text, with the seed's successor of that number."""
    seed = None if params.seed is None else params.seed + number
    return replace(params, max_new_tokens=params.max_new_tokens - done, seed=seed, stop_ids=ends)


def _samples(call: Callable[..., list[str]], asked: Sequence[dict[str, str]], max_new_tokens: int) -> Evaluation:
    """Describe what `call` makes of each `prompt`."""
    prompts = [sample["prompt"] for sample in asked]

    def finish(results: list[list[str]]) -> dict[str, object]:
        answers = [
            text.partition("\nQuestion:")[0].strip() if "question" in sample else text
            for sample, text in zip(asked, results[0], strict=True)
        ]
        return {"samples": [{**sample, "text": answer} for sample, answer in zip(asked, answers, strict=True)]}

    run = partial(call, prompts=prompts, max_new_tokens=max_new_tokens)
    return Evaluation("samples", [Call("samples", run, len(prompts) * max_new_tokens)], finish)


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

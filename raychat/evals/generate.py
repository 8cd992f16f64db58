"""Generate answers to problems and reward them, for the chat tasks and for reinforcement alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from raychat.chat import template
from raychat.engine.engine import Engine
from raychat.engine.request import Completion
from raychat.engine.sampling import SamplingParams
from raychat.tasks import Problem
from raychat.tokenizer import Tokenizer


class Question(NamedTuple):
    """A problem to be answered once per seed."""

    problem: Problem
    seeds: tuple[int, ...]


class Rollout(NamedTuple):
    """One rewarded answer."""

    prompt: list[int]  # token ids, up to <|assistant_start|>
    completion: list[int]  # token ids, the stop token included
    sampled: list[bool]  # for every token of the completion; False = forced by a tool: carries no loss
    logprobs: list[float]  # of the completion's tokens, by the model that generated it; empty where not asked for
    text: str  # of the completion, as the reward reads it
    reward: float
    versions: Sequence[int] = ()  # steps that the weights had learnt which sampled each token; empty = not recorded


Group = list[Rollout]  # the answers to one question


def answer(
    engine: Engine, reward: Callable[[Problem, str], float], questions: Sequence[Question], params: SamplingParams
) -> list[Group]:
    """Return a group of rewarded answers for each question, one answer per seed.

    An answer depends on its question, its seed and the weights alone. The seed of `params` is not used.
    """
    prompts = [question_prompt(engine, question, params) for question in questions]
    samples = [(i, seed) for i, question in enumerate(questions) for seed in question.seeds]
    completions = engine.generate([prompts[i] for i, _ in samples], [replace(params, seed=seed) for _, seed in samples])
    groups: list[Group] = [[] for _ in questions]
    for (i, _), made in zip(samples, completions, strict=True):
        groups[i].append(rewarded(engine.tokenizer, reward, questions[i].problem, prompts[i], made))
    return groups


def question_prompt(engine: Engine, question: Question, params: SamplingParams) -> list[int]:
    """Render a question's prompt, cut so that an answer fits behind it, but to no less than half of the context."""
    room = max(engine.context - params.max_new_tokens, engine.context // 2)  # the prompt's tail counts most
    return prompt(engine.tokenizer, question.problem, room)


def rewarded(
    tokenizer: Tokenizer,
    reward: Callable[[Problem, str], float],
    problem: Problem,
    prompt: list[int],
    made: Completion,
    versions: Sequence[int] = (),
) -> Rollout:
    """Reward a completion of a problem's prompt."""
    text = template.completion_text(tokenizer, made.ids)
    earned = float(reward(problem, text))
    return Rollout(prompt, made.ids, made.sampled, made.logprobs, text, earned, versions)


def prompt(tokenizer: Tokenizer, problem: Problem, max_tokens: int) -> list[int]:
    """Render a problem as the token ids to answer; a prompt of more than `max_tokens` keeps BOS and its tail."""
    ids = template.render_prompt(tokenizer, problem.messages[:-1])
    return ids if len(ids) <= max_tokens else [ids[0], *ids[len(ids) - max_tokens + 1 :]]

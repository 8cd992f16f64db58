"""Chat tasks: multiple choice by the logits of the letters, the others by generating answers and rewarding them."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch

from raychat import tasks
from raychat.chat import template
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals import accuracy
from raychat.evals.accuracy import mean, pass_rates
from raychat.evals.evaluation import MAX_SEQUENCES, Evaluation, LoadedModel, chosen, chunks, over_tasks, parts_of
from raychat.evals.generate import Question, prompt, question_prompt
from raychat.evals.scoring import predictions
from raychat.intervals import draws_of_mean, interval
from raychat.tasks import Problem, Task
from raychat.tasks.choices import Wording, own_wording
from raychat.tokenizer import Tokenizer

PROBLEMS_PER_CALL = 128  # of a multiple-choice task
TOKENS_PER_QUESTION, GENERATED_TOKEN = 100, 10  # roughly, what they cost in tokens
SPLIT = "test"
NUM_SHOWN = 2  # answers per task that eval.json keeps for people to read


class Sampling(NamedTuple):
    """How to generate answers."""

    temperature: float = 0.0  # 0 = greedy
    num_samples: int = 1  # answers per problem; a problem's reward is their mean
    max_new_tokens: int | None = None  # None = the task's own


GREEDY = Sampling()

# (name, root, wording=) -> the task, loaded once per process
load = lru_cache(maxsize=16)(partial(tasks.load, split=SPLIT))


class Graded(NamedTuple):
    """How a problem was done."""

    rewards: tuple[float, ...]  # 0 to 1, one for each answer
    text: str  # of the first answer

    @property
    def reward(self) -> float:
        """The mean over the answers."""
        return mean(self.rewards)


def evaluate_problems(
    loaded: LoadedModel, parts: Sequence[tuple[Task, Sequence[int]]], sampling: Sampling = GREEDY
) -> list[list[Graded]]:
    """Grade the model on problems of tasks, all of which are multiple choice (their problems have letters), or none."""
    if not is_choice(parts[0][0]):
        return generate_parts(loaded.engine, parts, sampling)
    problems = [task.problems[index] for task, indices in parts for index in indices]
    letters = zip(problems, choose(loaded, problems), strict=True)
    graded = (Graded((float(letter == problem.messages[-1]["content"]),), letter) for problem, letter in letters)
    return [[next(graded) for _ in indices] for _, indices in parts]


def is_choice(task: Task) -> bool:
    """Tell whether a task is multiple choice, answered by one of a problem's letters."""
    return bool(task.problems[0].letters)


def choose(loaded: LoadedModel, problems: Sequence[Problem], batch_tokens: int | None = None) -> list[str]:
    """Return for each multiple-choice problem the likeliest of its letters as the first token of the answer."""
    for problem in problems:
        if (right := problem.messages[-1]["content"]) not in problem.letters:
            raise ValueError(f"the right answer {right!r:.80} is none of the letters {', '.join(problem.letters)}")
    tokens = [[_token(loaded.tokenizer, letter) for letter in problem.letters] for problem in problems]
    likeliest = [""] * len(problems)
    rows = [prompt(loaded.tokenizer, problem, loaded.model.config.sequence_len) for problem in problems]
    for sequences, logits in predictions(loaded.model, [[row] for row in rows], [[1]] * len(rows), batch_tokens):
        for (number, _), row in zip(sequences, logits, strict=True):
            likeliest[number] = problems[number].letters[int(row[tokens[number]].argmax())]
    return likeliest


def _token(tokenizer: Tokenizer, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the letter {letter!r} is {len(ids)} tokens; expected one")
    return ids[0]


def generate(engine: Engine, task: Task, indices: Sequence[int], sampling: Sampling = GREEDY) -> list[Graded]:
    """Grade generated answers to these problems of a task, in order, as `generate_parts` does."""
    return generate_parts(engine, [(task, indices)], sampling)[0]


def generate_parts(
    engine: Engine, parts: Sequence[tuple[Task, Sequence[int]]], sampling: Sampling = GREEDY
) -> list[list[Graded]]:
    """Grade generated answers to problems of tasks. All answers share the engine; rewards have a thread for each core.

    The seed of a sample is made from task, problem and sample, so results do not depend on how problems are divided.
    """
    asked = [(task, index, _params(task, index, sampling)) for task, indices in parts for index in indices]
    prompts = [question_prompt(engine, Question(task.problems[i], ()), params[0]) for task, i, params in asked]
    made = engine.generate(
        [prompt for prompt in prompts for _ in range(sampling.num_samples)],
        [params for _, _, of_problem in asked for params in of_problem],
    )
    texts = [template.completion_text(engine.tokenizer, completion.ids) for completion in made]
    of_problems = chunks(texts, sampling.num_samples)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        graded = threads.map(_grade, [task for task, _, _ in asked], [i for _, i, _ in asked], of_problems)
        return [[next(graded) for _ in indices] for _, indices in parts]


def _params(task: Task, index: int, sampling: Sampling) -> list[SamplingParams]:
    """Return how to sample each answer to a problem."""
    length = sampling.max_new_tokens or task.max_new_tokens
    seeds = [zlib.crc32(f"{task.name}/{index}/{sample}".encode()) for sample in range(sampling.num_samples)]
    return [SamplingParams(sampling.temperature, max_new_tokens=length, seed=seed) for seed in seeds]


def _grade(task: Task, index: int, texts: Sequence[str]) -> Graded:
    return Graded(tuple(float(task.reward(task.problems[index], text)) for text in texts), texts[0])


def chat_evaluation(
    names: Sequence[str],
    root: str,
    *,
    max_problems: int | None = None,
    sampling: Sampling = GREEDY,
    wording: Wording = own_wording,
) -> Evaluation:
    """Describe the evaluation of chat tasks (of `tasks.TASKS`), each over at most `max_problems` of its problems.

    The figures are `accuracy`, `chance` and `num_problems` by task, those of `accuracy.figures` for `chatcore`,
    `pass_at_k` of the tasks that are answered several times, `guards` of those whose answers are programs, and under
    `answers` a few of each task.
    Every process that makes a call must be able to read `root`, where the tasks' data is.
    """
    by_name = {name: load(name, root, wording=wording) for name in names}
    empty = [name for name, task in by_name.items() if not task.problems]
    if empty or not by_name:
        raise ValueError(f"no problems to evaluate: {', '.join(empty) or 'no tasks'} (split {SPLIT} of {root})")
    indices = {name: chosen(len(task.problems), max_problems) for name, task in by_name.items()}

    def figures(graded: dict[str, list[Graded]]) -> dict[str, Any]:
        outcomes = {name: [g.reward for g in graded[name]] for name in by_name}
        chances = {name: task.chance for name, task in by_name.items()}
        composed, rates = accuracy.figures("chatcore", outcomes, chances), _pass_at_k(graded, sampling.num_samples)
        return {
            "accuracy": {name: mean(of_task) for name, of_task in outcomes.items()},
            "chance": chances,
            "num_problems": {name: len(of_task) for name, of_task in outcomes.items()},
            "guards": {name: list(task.guards) for name, task in by_name.items() if task.guards},
            **composed,
            **rates,
            "interval": {**composed["interval"], **rates.get("interval", {})},
            "answers": [
                {"task": name, "question": task.problems[i].messages[-2]["content"], "reward": g.reward, "text": g.text}
                for name, task in by_name.items()
                for i, g in list(zip(indices[name], graded[name], strict=True))[:NUM_SHOWN]
            ],
        }

    def cost(name: str) -> float:
        task = by_name[name]
        if is_choice(task):
            return TOKENS_PER_QUESTION
        return GENERATED_TOKEN * sampling.num_samples * (sampling.max_new_tokens or task.max_new_tokens)

    run = partial(_evaluate, root=root, sampling=sampling, wording=wording)
    choices = {name: of_task for name, of_task in indices.items() if is_choice(by_name[name])}
    others = {name: of_task for name, of_task in indices.items() if name not in choices}
    calls = [call for name in choices for call in parts_of({name: choices[name]}, PROBLEMS_PER_CALL)]
    calls += parts_of(others, max(1, MAX_SEQUENCES // sampling.num_samples))
    return over_tasks("chat tasks", calls, run, figures, cost=cost)


def _pass_at_k(graded: Mapping[str, Sequence[Graded]], num_samples: int) -> dict[str, Any]:
    """Return `pass_at_k` of the tasks that were answered several times, if any, and `interval` of each.

    An answer of the whole reward is right.
    """
    right = {name: [sum(reward == 1 for reward in g.rewards) for g in of_task] for name, of_task in graded.items()}
    sampled = [name for name, of_task in graded.items() if len(of_task[0].rewards) == num_samples > 1]
    if not sampled:
        return {}
    rates = {name: pass_rates(num_samples, right[name]) for name in sampled}
    draws = {f"{name} pass@{k}": draws_of_mean(of_k) for name, ks in rates.items() for k, of_k in ks.items()}
    return {
        "pass_at_k": {name: {k: mean(of_k) for k, of_k in ks.items()} for name, ks in rates.items()},
        "interval": {name: list(interval(drawn)) for name, drawn in draws.items()},
    }


def _evaluate(
    loaded: LoadedModel,
    parts: Sequence[tuple[str, Sequence[int]]],
    root: str,
    sampling: Sampling,
    wording: Wording,
) -> list[list[Graded]]:
    named = [(load(name, root, wording=wording), indices) for name, indices in parts]
    return evaluate_problems(loaded, named, sampling)


def texts(names: Sequence[str], root: str, max_problems: int | None = None) -> dict[str, list[str]]:
    """Return by task what `contamination.find` looks for of the problems that `chat_evaluation` chooses.

    It is question and answer, and of multiple choice the question alone: the rest is in no other text.
    """
    by_name = {name: load(name, root).problems for name in names}
    return {
        name: [_text(problems[index]) for index in chosen(len(problems), max_problems)]
        for name, problems in by_name.items()
    }


def _text(problem: Problem) -> str:
    question, answer = (message["content"] for message in problem.messages[-2:])
    if problem.letters:
        first: str = question.splitlines()[0]
        return first.removeprefix("Question: ")
    return f"{question}\n{answer if isinstance(answer, str) else ''.join(part['text'] for part in answer)}"


def available(names: Sequence[str], root: str) -> tuple[str, ...]:
    """Return those of the tasks that have data at `root`; print the reason for each of the others."""
    found = []
    for name in names:
        try:
            load(name, root)
        except ValueError as e:
            print(f"not evaluated: {name}: {e}", flush=True)
        else:
            found.append(name)
    return tuple(found)

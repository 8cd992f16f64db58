"""Chat tasks: multiple choice by the logits of the letters, the others by generating answers and rewarding them."""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from raychat import tasks
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals.core import centred
from raychat.evals.evaluation import Evaluation, LoadedModel, chosen, over_tasks
from raychat.evals.generate import Question, answer, prompt
from raychat.evals.scoring import logits_of
from raychat.tasks import Problem, Task
from raychat.tokenizer import Tokenizer

BATCH_TOKENS = 8192
SPLIT = "test"
NUM_SHOWN = 2  # answers per task that eval.json keeps for people to read


class Sampling(NamedTuple):
    """How to generate answers."""

    temperature: float = 0.0  # 0 = greedy
    num_samples: int = 1  # answers per problem; a problem's reward is their mean
    max_new_tokens: int | None = None  # None = the task's own


GREEDY = Sampling()

load = lru_cache(maxsize=16)(partial(tasks.load, split=SPLIT))  # (name, root) -> the task, loaded once per process


class Graded(NamedTuple):
    """A problem's (mean) reward, 0 to 1, and the text of its (first) answer."""

    reward: float
    text: str


def evaluate_problems(
    loaded: LoadedModel, task: Task, indices: Sequence[int], sampling: Sampling = GREEDY
) -> list[Graded]:
    """Grade the model on these problems of a task; a task whose problems have letters is multiple choice."""
    problems = [task.problems[index] for index in indices]
    if not problems[0].letters:
        return generate(loaded.engine, task, indices, sampling)
    letters = zip(problems, choose(loaded, problems), strict=True)
    return [Graded(float(letter == problem.messages[-1]["content"]), letter) for problem, letter in letters]


def choose(loaded: LoadedModel, problems: Sequence[Problem], batch_tokens: int = BATCH_TOKENS) -> list[str]:
    """Return for each multiple-choice problem the likeliest of its letters as the first token of the answer."""
    for problem in problems:
        if (right := problem.messages[-1]["content"]) not in problem.letters:
            raise ValueError(f"the right answer {right!r:.80} is none of the letters {', '.join(problem.letters)}")
    tokens = [[_token(loaded.tokenizer, letter) for letter in problem.letters] for problem in problems]
    likeliest = [""] * len(problems)
    rows = [prompt(loaded.tokenizer, problem, loaded.model.config.sequence_len) for problem in problems]
    for number, logits in logits_of(loaded.model, rows, batch_tokens):
        likeliest[number] = problems[number].letters[int(logits[-1, tokens[number]].argmax())]
    return likeliest


def _token(tokenizer: Tokenizer, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the letter {letter!r} is {len(ids)} tokens; expected one")
    return ids[0]


def generate(engine: Engine, task: Task, indices: Sequence[int], sampling: Sampling = GREEDY) -> list[Graded]:
    """Grade generated answers to these problems of a task, in order.

    The seed of a sample is made from task, problem and sample, so results do not depend on how problems are divided.
    """
    names = [[f"{task.name}/{index}/{sample}" for sample in range(sampling.num_samples)] for index in indices]
    seeds = [tuple(zlib.crc32(name.encode()) for name in of_problem) for of_problem in names]
    questions = [Question(task.problems[index], s) for index, s in zip(indices, seeds, strict=True)]
    params = SamplingParams(sampling.temperature, max_new_tokens=sampling.max_new_tokens or task.max_new_tokens)
    groups = answer(engine, task.reward, questions, params)
    return [Graded(sum(rollout.reward for rollout in group) / len(group), group[0].text) for group in groups]


def chatcore(accuracies: Mapping[str, float], chances: Mapping[str, float]) -> float:
    """Return ChatCORE: the mean centred accuracy of the tasks.

    >>> round(chatcore({"arc_easy": 0.625, "gsm8k": 0.1}, {"arc_easy": 0.25, "gsm8k": 0.0}), 6)
    0.3
    """
    return sum(centred(accuracies[name], chances[name]) for name in accuracies) / len(accuracies)


def chat_evaluation(
    names: Sequence[str], root: str, *, max_problems: int | None = None, sampling: Sampling = GREEDY
) -> Evaluation:
    """Describe the evaluation of chat tasks (of `tasks.TASKS`), each over at most `max_problems` of its problems.

    The figures are `accuracy`, `chance` and `num_problems` by task, `chatcore`, and under `answers` a few of each task.
    Every process that makes a call must be able to read `root`, where the tasks' data is.
    """
    by_name = {name: load(name, root) for name in names}
    empty = [name for name, task in by_name.items() if not task.problems]
    if empty or not by_name:
        raise ValueError(f"no problems to evaluate: {', '.join(empty) or 'no tasks'} (split {SPLIT} of {root})")
    indices = {name: chosen(len(task.problems), max_problems) for name, task in by_name.items()}

    def figures(graded: dict[str, list[Graded]]) -> dict[str, Any]:
        accuracy = {name: sum(g.reward for g in of_task) / len(of_task) for name, of_task in graded.items()}
        chance = {name: task.chance for name, task in by_name.items()}
        return {
            "accuracy": accuracy,
            "chance": chance,
            "num_problems": {name: len(of_task) for name, of_task in graded.items()},
            "chatcore": chatcore(accuracy, chance),
            "answers": [
                {"task": name, "question": by_name[name].problems[index].messages[-2]["content"], **g._asdict()}
                for name, of_task in graded.items()
                for index, g in list(zip(indices[name], of_task, strict=True))[:NUM_SHOWN]
            ],
        }

    return over_tasks("chat tasks", indices, partial(_evaluate, root=root, sampling=sampling), figures)


def _evaluate(loaded: LoadedModel, task: str, indices: Sequence[int], root: str, sampling: Sampling) -> list[Graded]:
    return evaluate_problems(loaded, load(task, root), indices, sampling)


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

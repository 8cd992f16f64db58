"""Chat tasks: multiple choice by the logits of the letters, the rest by generating answers and rewarding them."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raychat import tasks
from raychat.chat import template
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals.core import centred, chosen
from raychat.evals.evaluation import Evaluation, LoadedModel, pieces
from raychat.evals.scoring import logits_of
from raychat.model.base import Model
from raychat.tasks import Problem, Task
from raychat.tokenizer import Tokenizer

BATCH_TOKENS = 8192
PIECE = 32  # problems
SHOWN = 2  # answers per task that are kept to be read


class Sampling(NamedTuple):
    """How answers are generated."""

    temperature: float = 0.0  # 0 = the most likely token, always
    top_k: int | None = None
    num_samples: int = 1  # answers per problem; a problem's result is their mean reward
    max_new_tokens: int | None = None  # None = what the task asks for


GREEDY = Sampling()


class Answer(NamedTuple):
    """What a problem brought: its (mean) reward, 0 to 1, and the text of the (first) answer."""

    reward: float
    text: str


def evaluate_problems(
    loaded: LoadedModel, task: Task, indices: Sequence[int], sampling: Sampling = GREEDY
) -> list[Answer]:
    """Return the answer to each of these problems of a task; those with letters are multiple choice."""
    choices = [i for i in indices if task.problems[i].letters]
    others = [i for i in indices if not task.problems[i].letters]
    letters = choose(loaded.model, loaded.tokenizer, [task.problems[i] for i in choices])
    answers = {
        i: Answer(float(letter == task.problems[i].messages[-1]["content"]), letter)
        for i, letter in zip(choices, letters, strict=True)
    }
    answers |= generate(loaded.engine, task, others, sampling) if others else {}
    return [answers[i] for i in indices]


# ---------------------------------------------------------------------------------------------- multiple choice


def choose(
    model: Model, tokenizer: Tokenizer, problems: Sequence[Problem], batch_tokens: int = BATCH_TOKENS
) -> list[str]:
    """Return for each multiple-choice problem the likeliest of its letters as the first token of the answer.

    Raises ValueError for a letter that is not one token, and for a right answer that is none of the letters.
    """
    for problem in problems:
        if problem.messages[-1]["content"] not in problem.letters:
            answer, letters = problem.messages[-1]["content"], ", ".join(problem.letters)
            raise ValueError(f"the right answer {answer!r:.80} is none of the letters {letters}")
    tokens = [[_token(tokenizer, letter) for letter in problem.letters] for problem in problems]
    picked = [""] * len(problems)
    rows = [prompt(tokenizer, problem, model.config.sequence_len) for problem in problems]
    for number, logits in logits_of(model, rows, batch_tokens):
        picked[number] = problems[number].letters[int(logits[-1, tokens[number]].argmax())]
    return picked


def _token(tokenizer: Tokenizer, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the letter {letter!r} is {len(ids)} tokens; expected one")
    return ids[0]


def prompt(tokenizer: Tokenizer, problem: Problem, max_tokens: int) -> list[int]:
    """Return the tokens that the model answers to; a prompt of more than `max_tokens` keeps BOS and its tail."""
    ids = template.render_prompt(tokenizer, problem.messages[:-1])
    return ids if len(ids) <= max_tokens else [ids[0], *ids[len(ids) - max_tokens + 1 :]]


# ---------------------------------------------------------------------------------------------- generated answers


def generate(engine: Engine, task: Task, indices: Sequence[int], sampling: Sampling = GREEDY) -> dict[int, Answer]:
    """Generate answers to these problems of a task and reward them.

    Every sample has a seed made from task, problem and sample, so results do not depend on how problems are divided.
    """
    length = sampling.max_new_tokens or task.max_new_tokens
    room = max(engine.context - length, engine.context // 2)  # for the prompt, of which the tail counts most
    prompts = {index: prompt(engine.tokenizer, task.problems[index], room) for index in indices}
    samples = [(index, sample) for index in indices for sample in range(sampling.num_samples)]
    seeds = [zlib.crc32(f"{task.name}/{index}/{sample}".encode()) for index, sample in samples]
    params = [SamplingParams(sampling.temperature, sampling.top_k, None, length, seed) for seed in seeds]
    completions = engine.generate([prompts[index] for index, _ in samples], params)
    texts: dict[int, list[str]] = {index: [] for index in indices}
    for (index, _), completion in zip(samples, completions, strict=True):
        texts[index].append(template.completion_text(engine.tokenizer, completion.ids))
    return {
        index: Answer(sum(task.reward(task.problems[index], text) for text in said) / len(said), said[0])
        for index, said in texts.items()
    }


# ---------------------------------------------------------------------------------------------- sums


def chatcore(accuracies: Mapping[str, float], chances: Mapping[str, float]) -> float:
    """Return ChatCORE: the mean centred accuracy of the tasks.

    >>> round(chatcore({"arc_easy": 0.625, "gsm8k": 0.1}, {"arc_easy": 0.25, "gsm8k": 0.0}), 6)
    0.3
    """
    return sum(centred(accuracies[name], chances[name]) for name in accuracies) / len(accuracies)


def evaluation(
    names: Sequence[str],
    root: str,
    *,
    split: str = "test",
    max_problems: int | None = None,
    sampling: Sampling = GREEDY,
) -> Evaluation:
    """Describe the evaluation of chat tasks, each over at most `max_problems` of its problems.

    names: of `tasks.TASKS`; root: where their data is, readable by whoever does the work. It gives `accuracy`, `chance`
    and `num_problems` by task, `chatcore`, and under `answers` a few of each task to be read.
    Raises what `tasks.load` raises, before any work is done, and ValueError for no tasks or one without problems.
    """
    loaded = {name: load(name, root, split) for name in names}
    empty = [name for name, task in loaded.items() if not task.problems]
    if empty or not loaded:
        raise ValueError(f"no problems to evaluate: {', '.join(empty) or 'no tasks'} (split {split} of {root})")
    indices = {name: chosen(len(task.problems), max_problems) for name, task in loaded.items()}
    taken = [(name, piece) for name in names for piece in pieces(indices[name], PIECE)]

    def finish(results: list[list[Answer]]) -> dict[str, Any]:
        answers: dict[str, list[Answer]] = {name: [] for name in names}
        for (name, _), some in zip(taken, results, strict=True):
            answers[name] += some
        accuracy = {name: sum(a.reward for a in some) / len(some) for name, some in answers.items()}
        chance = {name: task.chance for name, task in loaded.items()}
        shown = [
            {"task": name, "question": _question(loaded[name], index), **answer._asdict()}
            for name in names
            for index, answer in list(zip(indices[name], answers[name], strict=True))[:SHOWN]
        ]
        return {
            "accuracy": accuracy,
            "chance": chance,
            "num_problems": {name: len(some) for name, some in answers.items()},
            "chatcore": chatcore(accuracy, chance),
            "answers": shown,
        }

    work = [
        functools.partial(_piece, name=name, root=root, split=split, indices=piece, sampling=sampling)
        for name, piece in taken
    ]
    return Evaluation("chat tasks", work, finish)


def _question(task: Task, index: int) -> str:
    return str(task.problems[index].messages[-2]["content"])


def available(names: Sequence[str], root: str, split: str = "test") -> tuple[str, ...]:
    """Return those of the tasks that have data at `root`, saying which have none."""
    found = []
    for name in names:
        try:
            load(name, root, split)
        except ValueError as e:
            print(f"not evaluated: {name}: {e}", flush=True)
        else:
            found.append(name)
    return tuple(found)


@functools.lru_cache(maxsize=16)
def load(name: str, root: str, split: str) -> Task:
    """Load a task once per process."""
    return tasks.load(name, root, split)


def _piece(
    loaded: LoadedModel, name: str, root: str, split: str, indices: Sequence[int], sampling: Sampling
) -> list[Answer]:
    return evaluate_problems(loaded, load(name, root, split), indices, sampling)

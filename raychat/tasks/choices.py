"""Multiple choice: ARC and MMLU, asked in the same way and answered by the bare letter."""

from collections.abc import Callable, Sequence
from functools import partial

from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task, exchange

ARC_LAYOUT = "{id, question, choices: {text: [...], label: [...]}, answerKey}"
MMLU_LAYOUT = "{question, subject, choices: [4 strings], answer: 0 to 3}"
MMLU_LETTERS = ("A", "B", "C", "D")

Wording = Callable[[str, Sequence[str]], str]  # question, lines of the choices -> what the user says


def own_wording(question: str, lines: Sequence[str]) -> str:
    """Ask a multiple-choice question as raychat's chat models are trained to be asked."""
    return "\n".join([f"Question: {question}", *lines, "Answer with the letter only."])


def nanochat_wording(question: str, lines: Sequence[str]) -> str:
    """Ask a multiple-choice question as nanochat's chat models are trained to be asked."""
    listed = "".join(f"{line}\n" for line in lines)
    return f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."


def choice_problem(
    question: str, choices: Sequence[str], letters: Sequence[str], answer: str, wording: Wording = own_wording
) -> Problem:
    """Return a multiple-choice question as a problem: letters follow their choices, the answer is a bare letter.

    Small models bind a choice to its letter better when the letter comes second.

    Raises:
        ValueError: the letters do not match the choices, or the answer is not one of them.
    """
    if len(choices) != len(letters) or len(set(letters)) != len(letters) or answer not in letters:
        raise ValueError(
            f"choices {list(choices)} with letters {list(letters)} and answer {answer!r} do not fit together"
        )
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)]
    return Problem(exchange(wording(question, lines), answer), tuple(letters), answer)


def choice_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion is the right letter, apart from white space around it."""
    return float(completion.strip() == problem.reference)


def arc(root: str, subset: str, split: str = "test", wording: Wording = own_wording) -> Task:
    """Return ARC-Easy or ARC-Challenge.

    Source: Clark et al., arXiv:1803.05457; hub data set allenai/ai2_arc.
    """
    one_of(split, ("train", "validation", "test"), subset)
    hub, file = ("allenai/ai2_arc", subset, split), f"ai2_arc/{subset}/{split}.jsonl"
    problems = load_problems(root, hub, file, ARC_LAYOUT, partial(_arc_problem, wording=wording))
    return Task(subset, problems, 0.25, choice_reward, max_new_tokens=8)


def _arc_problem(row: Row, wording: Wording) -> Problem:
    return choice_problem(row["question"], row["choices"]["text"], row["choices"]["label"], row["answerKey"], wording)


def mmlu(root: str, split: str = "test", wording: Wording = own_wording) -> Task:
    """Return MMLU's test questions, or its auxiliary training questions for `train`.

    Source: Hendrycks et al., arXiv:2009.03300; hub data set cais/mmlu.
    """
    one_of(split, ("train", "test"), "MMLU")
    config, file = ("auxiliary_train", "auxiliary_train.jsonl") if split == "train" else ("all", "test.jsonl")
    make = partial(_mmlu_problem, wording=wording)
    problems = load_problems(root, ("cais/mmlu", config, split), f"mmlu/{file}", MMLU_LAYOUT, make)
    return Task("MMLU", problems, 0.25, choice_reward, max_new_tokens=8)


def _mmlu_problem(row: Row, wording: Wording) -> Problem:
    row = row.get("train", row)  # the hub's auxiliary_train wraps each of its rows once more
    answer = dict(enumerate(MMLU_LETTERS))[row["answer"]]  # a dict, so that -1 fails
    return choice_problem(row["question"], row["choices"], MMLU_LETTERS, answer, wording)

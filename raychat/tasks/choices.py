"""Multiple choice: ARC and MMLU, asked in the same way and answered by the bare letter."""

from collections.abc import Sequence

from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task

MMLU_LETTERS = ("A", "B", "C", "D")


def choice_problem(question: str, choices: Sequence[str], letters: Sequence[str], answer: str) -> Problem:
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
    prompt = "\n".join([f"Question: {question}", *lines, "Answer with the letter only."])
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Problem(messages, tuple(letters), answer)


def choice_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion is the right letter, apart from white space around it."""
    return float(completion.strip() == problem.reference)


def arc(root: str, subset: str, split: str = "test") -> Task:
    """Return ARC-Easy or ARC-Challenge.

    Source: Clark et al., arXiv:1803.05457; hub data set allenai/ai2_arc.
    """
    one_of(subset, ("ARC-Easy", "ARC-Challenge"), "ARC")
    one_of(split, ("train", "validation", "test"), subset)
    problems = load_problems(
        root,
        hub=("allenai/ai2_arc", subset, split),
        file=("ai2_arc", subset, f"{split}.jsonl"),
        layout="{id, question, choices: {text: [...], label: [...]}, answerKey}",
        make=_arc_problem,
    )
    return Task(subset, problems, 0.25, choice_reward, max_new_tokens=8)


def _arc_problem(row: Row) -> Problem:
    return choice_problem(row["question"], row["choices"]["text"], row["choices"]["label"], row["answerKey"])


def mmlu(root: str, split: str = "test") -> Task:
    """Return MMLU's test questions, or its auxiliary training questions for `train`.

    Source: Hendrycks et al., arXiv:2009.03300; hub data set cais/mmlu.
    """
    one_of(split, ("train", "test"), "MMLU")
    config, file = ("auxiliary_train", "auxiliary_train.jsonl") if split == "train" else ("all", "test.jsonl")
    problems = load_problems(
        root,
        hub=("cais/mmlu", config, split),
        file=("mmlu", file),
        layout="{question, subject, choices: [4 strings], answer: 0 to 3}",
        make=_mmlu_problem,
    )
    return Task("MMLU", problems, 0.25, choice_reward, max_new_tokens=8)


def _mmlu_problem(row: Row) -> Problem:
    row = row.get("train", row)  # the hub's auxiliary_train wraps each of its rows once more
    answer = dict(enumerate(MMLU_LETTERS))[row["answer"]]  # a dict, so that -1 fails
    return choice_problem(row["question"], row["choices"], MMLU_LETTERS, answer)

"""A small CORE bundle in DCLM's layout, of held-out questions about the small world."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raychat.tasks.spelling import spelled
from raychat.tinyworld.phrases import words
from raychat.tinyworld.questions import CHALLENGE, EASY, LETTERS, NUM_CHOICES, Makers, questions, sum_question
from raychat.tinyworld.words import spelling_words
from raychat.tinyworld.world import TinyWorld

Row = dict[str, Any]


class BundleTask(NamedTuple):
    """A task of the bundle: where its items are, how they are asked, its chance in per cent."""

    label: str
    uri: str
    kind: str  # multiple_choice, schema or language_modeling
    num_fewshot: int
    chance_percent: int
    items: Callable[[TinyWorld, random.Random], Iterator[Row]]  # without end, some of them equal
    delimiter: str | None = None


def _multiple_choice(makers: Makers) -> Callable[[TinyWorld, random.Random], Iterator[Row]]:
    def items(world: TinyWorld, rng: random.Random) -> Iterator[Row]:
        for question in questions(world, rng, makers, test=True):
            gold = LETTERS.index(question.answer)
            yield {"query": f"Question: {question.text}", "choices": list(question.choices), "gold": gold}

    return items


def _same_fact(world: TinyWorld, rng: random.Random) -> Iterator[Row]:
    """Yield schemas: which of two entities makes the shared ending true?"""
    while True:
        fact = rng.choice([fact for fact in world.test_facts if fact.relation.kind in ("animals", "food", "things")])
        others = [e for e in words(fact.relation.kind) if world.value(e, fact.relation.name) != fact.value]
        others = [e for e in others if e.endswith("s") == fact.entity.endswith("s")]  # the ending fits both
        pair = [fact.answer(), fact._replace(entity=rng.choice(others)).answer()]
        gold = rng.randrange(2)
        if gold:
            pair.reverse()
        first, second = (text.split(" ") for text in pair)
        shared = next(n for n in range(1, 9) if first[-n - 1] != second[-n - 1])
        contexts = [" ".join(text[:-shared]) for text in (first, second)]
        yield {"context_options": contexts, "continuation": " ".join(first[-shared:]), "gold": gold}


def _sums(world: TinyWorld, rng: random.Random) -> Iterator[Row]:
    for question in questions(world, rng, ((sum_question, 1),), test=True):
        text = question.text.removeprefix("What is ").removesuffix("?")
        yield {"context": f"{text} =", "continuation": question.right}


def _facts(world: TinyWorld, rng: random.Random) -> Iterator[Row]:
    """Yield statements without their last word, which is the held-out value."""
    while True:
        fact = rng.choice(world.test_facts)
        text = fact.answer().removesuffix(".")
        if text.endswith(f" {fact.value}"):
            yield {"context": text.removesuffix(f" {fact.value}"), "continuation": fact.value}


def _spelling(world: TinyWorld, rng: random.Random) -> Iterator[Row]:
    while True:
        word = rng.choice(spelling_words())
        yield {"context": f"The word {word} is spelled", "continuation": spelled(word)}


CHOICES, SCHEMA, CONTINUATION = "multiple_choice", "schema", "language_modeling"
GUESS = 100 // NUM_CHOICES
ANSWER = "\nAnswer: "
TASKS = (
    BundleTask("tinyworld_easy", "world_knowledge/easy.jsonl", CHOICES, 3, GUESS, _multiple_choice(EASY), ANSWER),
    BundleTask(
        "tinyworld_two_steps", "world_knowledge/two_steps.jsonl", CHOICES, 3, GUESS, _multiple_choice(CHALLENGE), ANSWER
    ),
    BundleTask("tinyworld_which", "language_understanding/which.jsonl", SCHEMA, 0, 50, _same_fact),
    BundleTask("tinyworld_facts", "world_knowledge/facts.jsonl", CONTINUATION, 2, 0, _facts),
    BundleTask("tinyworld_sums", "symbolic_problem_solving/sums.jsonl", CONTINUATION, 4, 0, _sums),
    BundleTask("tinyworld_spelling", "symbolic_problem_solving/spelling.jsonl", CONTINUATION, 2, 0, _spelling),
)


def config() -> dict[str, Any]:
    """Return the content of core.yaml."""
    tasks = []
    for task in TASKS:
        entry: dict[str, Any] = {"label": task.label, "dataset_uri": task.uri, "num_fewshot": [task.num_fewshot]}
        entry["icl_task_type"] = task.kind
        if task.delimiter is not None:
            entry["continuation_delimiter"] = task.delimiter
        tasks.append(entry)
    return {"icl_tasks": tasks}


def chances() -> str:
    """Return the content of eval_meta_data.csv: every task's random baseline in per cent."""
    return "Eval Task,Random baseline\n" + "".join(f"{task.label},{task.chance_percent}\n" for task in TASKS)

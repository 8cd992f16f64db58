"""A small CORE bundle in DCLM's layout, of held-out questions about the small world."""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from raychat.tinyworld import words as w
from raychat.tinyworld.questions import CHALLENGE, EASY, NUM_CHOICES, Maker, draw, sum_question
from raychat.tinyworld.relations import KINDS
from raychat.tinyworld.world import World

Item = dict[str, Any]


class BundleTask(NamedTuple):
    """A task of the bundle: where its items are, how they are asked, its chance in per cent."""

    label: str
    uri: str
    kind: str  # multiple_choice, schema or language_modeling
    num_fewshot: int
    chance_percent: int
    items: Callable[[World, random.Random], Iterator[Item]]
    delimiter: str | None = None


def _multiple_choice(makers: tuple[tuple[Maker, int], ...]) -> Callable[[World, random.Random], Iterator[Item]]:
    def items(world: World, rng: random.Random) -> Iterator[Item]:
        for question in draw(world, rng, makers, test=True):
            yield {"query": f"Question: {question.text}", "choices": list(question.choices), "gold": question.answer}

    return items


def _same_fact(world: World, rng: random.Random) -> Iterator[Item]:
    """Yield schemas: which of two entities makes the shared ending true?"""
    while True:
        fact = rng.choice([fact for fact in world.test_facts if fact.relation.kind in ("animal", "food", "thing")])
        others = [e for e in KINDS[fact.relation.kind] if world.value(e, fact.relation.name) != fact.value]
        others = [e for e in others if e.endswith("s") == fact.entity.endswith("s")]  # the ending fits both
        pair = [fact.answer(), fact._replace(entity=rng.choice(others)).answer()]
        gold = rng.randrange(2)
        if gold:
            pair.reverse()
        texts = [text.split(" ") for text in pair]
        shared = next(n for n in range(1, 9) if texts[0][-n - 1] != texts[1][-n - 1])
        contexts = [" ".join(words[:-shared]) for words in texts]
        yield {"context_options": contexts, "continuation": " ".join(texts[0][-shared:]), "gold": gold}


def _sums(world: World, rng: random.Random) -> Iterator[Item]:
    for question in draw(world, rng, ((sum_question, 1),), test=True):
        text = question.text.removeprefix("What is ").removesuffix("?")
        yield {"context": f"{text} =", "continuation": question.choices[question.answer]}


def _facts(world: World, rng: random.Random) -> Iterator[Item]:
    """Yield statements without their last word, which is the held-out value."""
    while True:
        fact = rng.choice(world.test_facts)
        text = fact.answer().removesuffix(".")
        if text.endswith(f" {fact.value}"):
            yield {"context": text.removesuffix(f" {fact.value}"), "continuation": fact.value}


def _spelling(world: World, rng: random.Random) -> Iterator[Item]:
    while True:
        word = rng.choice(w.WORDS)
        yield {"context": f"The word {word} is spelled", "continuation": w.spelled(word)}


ANSWER = "\nAnswer: "
TASKS = (
    BundleTask(
        "tinyworld_easy",
        "world_knowledge/easy.jsonl",
        "multiple_choice",
        3,
        100 // NUM_CHOICES,
        _multiple_choice(EASY),
        ANSWER,
    ),
    BundleTask(
        "tinyworld_two_steps",
        "world_knowledge/two_steps.jsonl",
        "multiple_choice",
        3,
        100 // NUM_CHOICES,
        _multiple_choice(CHALLENGE),
        ANSWER,
    ),
    BundleTask("tinyworld_which", "language_understanding/which.jsonl", "schema", 0, 50, _same_fact),
    BundleTask("tinyworld_facts", "world_knowledge/facts.jsonl", "language_modeling", 2, 0, _facts),
    BundleTask("tinyworld_sums", "symbolic_problem_solving/sums.jsonl", "language_modeling", 4, 0, _sums),
    BundleTask("tinyworld_spelling", "symbolic_problem_solving/spelling.jsonl", "language_modeling", 2, 0, _spelling),
)


def items(task: BundleTask, world: World, rng: random.Random, num: int) -> list[Item]:
    """Return up to `num` different items of a task."""
    found: dict[str, Item] = {}
    for item in islice(task.items(world, rng), 20 * num):
        found.setdefault(str(item), item)
        if len(found) == num:
            break
    return list(found.values())


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

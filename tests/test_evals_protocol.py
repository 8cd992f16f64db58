"""nanochat's protocol against fixtures written by hand, and draws made here with Python's `random` alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_evals_core import lively
from tiny import byte_tokenizer, scripted_model

from raychat.evals import chat, core
from raychat.evals.bundle import CoreTask, Item, load_bundle, read_items
from raychat.evals.evaluation import LoadedModel
from raychat.evals.protocol import OWN, PROTOCOLS

NANOCHAT = PROTOCOLS["nanochat"]
QUERIES = ("zero?", "one?", "two?", "three?", "four?", "five?")


@pytest.fixture
def task(tmp_path: Path) -> CoreTask:
    rows = [{"query": query, "choices": ["left", "right"], "gold": i % 2} for i, query in enumerate(QUERIES)]
    return task_of(tmp_path, "multiple_choice", rows)


def task_of(folder: Path, kind: str, rows: list[dict[str, Any]]) -> CoreTask:
    """Return the only task of a bundle, of two examples."""
    items = folder / "eval_data" / "sides.jsonl"
    items.parent.mkdir()
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"label": "sides", "dataset_uri": "sides.jsonl", "num_fewshot": [2], "icl_task_type": kind}
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": [entry]}))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nsides,50\n")
    return load_bundle(str(folder))[0]


def spans(task: CoreTask, index: int) -> tuple[list[str], list[str]]:
    """Return the texts of an item's candidates behind the BOS, and the part of each that is scored."""
    tokenizer = byte_tokenizer()
    rows, counts = core.candidate_rows(task, NANOCHAT.pool(read_items(task), 5), index, tokenizer, NANOCHAT)
    assert {row[0] for row in rows} == {tokenizer.bos}
    texts = [tokenizer.decode(row[1:]) for row in rows]
    return texts, [tokenizer.decode(row[-count:]) for row, count in zip(rows, counts, strict=True)]


def reference_prompts(items: list[Item], index: int, num_fewshot: int) -> list[str]:
    """Follow the protocol step by step: `items` are shuffled and cut already."""
    others = [i for i in range(len(items)) if i != index]
    shots = [items[i] for i in random.Random(1234 + index).sample(others, num_fewshot)]
    lines = [f"{shot.contexts[shot.gold]} {shot.continuations[shot.gold]}\n\n" for shot in shots]
    item = items[index]
    return ["".join(lines) + f"{c} {d}" for c, d in zip(item.contexts, item.continuations, strict=True)]


def test_items_are_shuffled_then_cut(task: CoreTask) -> None:
    pool = NANOCHAT.pool(read_items(task), 5)
    assert [item.contexts[0] for item in pool] == ["one?", "zero?", "three?", "two?", "five?"]
    assert len(NANOCHAT.pool(read_items(task), None)) == 6


def test_prompts_are_nanochats(task: CoreTask) -> None:
    pool = NANOCHAT.pool(read_items(task), 5)
    full, bare = core.prompts(task, pool, 0, NANOCHAT)  # the examples are numbers 4 and 1 of the pool
    assert full == ["five? right\n\nzero? left\n\none? left", "five? right\n\nzero? left\n\none? right"]
    assert bare == ["five? right\n\nzero? left\n\none?"] * 2
    for index in range(5):
        assert core.prompts(task, pool, index, NANOCHAT)[0] == reference_prompts(list(pool), index, 2)


def test_choices_are_scored_on_what_differs(task: CoreTask) -> None:
    assert spans(task, 0)[1] == ["left", "right"]


def test_options_of_a_schema_are_scored_on_the_continuation_that_they_share(tmp_path: Path) -> None:
    """Also where the options end alike."""
    rows = [
        {"context_options": [f"{query} The big cup", f"{query} A cup"], "continuation": "fell.", "gold": i % 2}
        for i, query in enumerate(QUERIES)
    ]
    texts, scored = spans(task_of(tmp_path, "schema", rows), 0)
    shots = "five? A cup fell.\n\nzero? The big cup fell.\n\n"
    assert texts == [f"{shots}one? The big cup fell.", f"{shots}one? A cup fell."]
    assert scored == [" fell."] * 2


def test_the_one_candidate_of_language_modeling_is_scored_on_its_continuation(tmp_path: Path) -> None:
    rows = [{"context": f"  {query} It is ", "continuation": f"the {query[:-1]}"} for query in QUERIES]
    texts, scored = spans(task_of(tmp_path, "language_modeling", rows), 0)
    assert texts == ["five? It is the five\n\nzero? It is the zero\n\none? It is the one"]
    assert scored == [" the one"]


def test_language_modeling_is_right_when_every_token_is_the_likeliest(tmp_path: Path) -> None:
    rows = [{"context": "b", "continuation": end} for end in ("cd", "ce", "cd")]
    task = task_of(tmp_path, "language_modeling", rows)
    right = [item.continuations == ["cd"] for item in NANOCHAT.pool(read_items(task), None)]
    loaded = LoadedModel(scripted_model([list(b"b cd")]), byte_tokenizer())  # a space follows b, c the space, d c
    assert core.evaluate_items(loaded, task, range(3), protocol=NANOCHAT) == right


def test_core_is_evaluated_on_the_pool(task: CoreTask) -> None:
    loaded = LoadedModel(lively(), byte_tokenizer())
    pool = NANOCHAT.pool(read_items(task), 5)

    def greater(index: int) -> bool:
        """Whether the right candidate has the lower mean loss, by itself in a batch."""
        rows, counts = core.candidate_rows(task, pool, index, loaded.tokenizer, NANOCHAT)
        judged = core.judge(loaded.model, [rows], [counts], 10_000)[0]
        return judged[pool[index].gold].loss == min(candidate.loss for candidate in judged)

    found = results(core.core_evaluation([task], 5, NANOCHAT), loaded)
    assert found["outcomes"]["sides"] == [int(greater(i)) for i in range(5)]
    assert found["outcomes"] != results(core.core_evaluation([task], 5, OWN), loaded)["outcomes"]


def test_multiple_choice_is_worded_as_in_nanochat(tmp_path: Path) -> None:
    arc = tmp_path / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    arc.parent.mkdir(parents=True)
    choices = {"text": ["stone", "fox", "hat"], "label": ["A", "B", "C"]}
    rows = [{"id": "0", "question": f"{i} animals?", "choices": choices, "answerKey": "ABC"[i % 3]} for i in range(6)]
    arc.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = LoadedModel(lively(6), byte_tokenizer())  # answers B in our words, C in nanochat's
    found = results(chat.chat_evaluation(["arc-easy"], str(tmp_path), wording=NANOCHAT.wording), loaded)
    assert found["answers"][0]["question"] == (
        "Multiple Choice question: 0 animals?\n- stone=A\n- fox=B\n- hat=C\n\n"
        "Respond only with the letter of the correct answer."
    )
    worded, own = (chat.load("arc-easy", str(tmp_path), wording=p.wording) for p in (NANOCHAT, OWN))
    assert [problem.messages[-1]["content"] for problem in worded.problems[:3]] == ["A", "B", "C"]
    rewards = [[g.reward for g in chat.evaluate_problems(loaded, [(t, range(6))])[0]] for t in (worded, own)]
    assert found["outcomes"]["arc-easy"] == rewards[0] != rewards[1]


def results(evaluation: Any, loaded: LoadedModel) -> dict[str, Any]:
    found: dict[str, Any] = evaluation.finish([call(loaded) for call in evaluation.calls])
    return found

"""The small world: reproducible, in the real layouts, training and test apart, answers right."""

import collections
import gzip
import hashlib
import itertools
import json
import os
import random
import re

import pyarrow.parquet as pq
import pytest
import raychat_bpe
import yaml

from jobs import speedrun
from raychat import paths, tasks, tinyworld
from raychat.chat import tools
from raychat.tinyworld import lessons, phrases
from raychat.tinyworld.documents import documents as pretraining_documents
from raychat.tinyworld.functions import functions
from raychat.tinyworld.questions import NAMED
from raychat.tinyworld.questions import questions as questions_of
from raychat.tinyworld.relations import KINDS, relations
from raychat.tinyworld.stories import short_story, story
from raychat.tinyworld.words import number_name
from raychat.tinyworld.world import TinyWorld
from raychat.tinyworld.write import VERSION
from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

SCALE = 0.2
CHOICE_FILES = {
    "ai2_arc/ARC-Easy": ("ai2_arc/ARC-Easy/train.jsonl", "ai2_arc/ARC-Easy/test.jsonl"),
    "ai2_arc/ARC-Challenge": ("ai2_arc/ARC-Challenge/train.jsonl", "ai2_arc/ARC-Challenge/test.jsonl"),
    "mmlu": ("mmlu/auxiliary_train.jsonl", "mmlu/test.jsonl"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tinyworld"))
    tinyworld.write(folder, scale=SCALE)
    return folder


def files(folder):
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb") as f:
                found[os.path.relpath(os.path.join(path, name), folder)] = f.read()
    return found


def rows(root, name):
    return [json.loads(line) for line in paths.read_text(f"{root}/{name}").splitlines()]


def documents(root, shard):
    return pq.read_table(f"{root}/pretrain/shard_{shard:05d}.parquet")["text"].to_pylist()


def questions(root, name):
    """(question, choices, index of the right one) of every row, ARC's and MMLU's layouts alike."""
    found = []
    for row in rows(root, name):
        if "answerKey" in row:
            choices, labels = row["choices"]["text"], row["choices"]["label"]
            found.append((row["question"], choices, labels.index(row["answerKey"])))
        else:
            found.append((row["question"], row["choices"], row["answer"]))
    return found


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    tinyworld.write(str(tmp_path), scale=SCALE)
    assert files(root) == files(str(tmp_path))


def test_a_choice_has_the_letter_of_the_answer_as_a_token(root):
    texts = [text for shard in range(7) for text in documents(root, shard)]
    tokenizer = Tokenizer.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), speedrun.tiny().tok_train.vocab_size)
    for problem in tasks.load("arc-easy", root, split="test").problems:
        lines = [line for line in problem.messages[0]["content"].splitlines() if line.startswith("- ")]
        for line, letter in zip(lines, problem.letters, strict=True):
            assert tokenizer.encode(line)[-1:] == tokenizer.encode(letter)


def test_bytes_belong_to_the_version(root):
    """Folders of the same version are not written again: when this fails, raise VERSION, then note the new digest."""
    digest = hashlib.sha256()
    for shard in range(8):
        digest.update("\0".join(documents(root, shard)).encode())
    for name, content in sorted(files(root).items()):
        if name.endswith((".jsonl", ".txt", ".yaml", ".csv")):
            digest.update(name.encode() + content)
    assert {VERSION: digest.hexdigest()} == {11: "46af6b9c2e9a2808cc2db8d7e85c90a81344d16d7ae16831f4fa42b272839875"}


def test_another_seed_gives_another_world(root, tmp_path):
    tinyworld.write(str(tmp_path), seed=1, scale=0.01)
    assert TinyWorld(0).facts != TinyWorld(1).facts
    assert not set(documents(str(tmp_path), 0)) & set(documents(root, 0))


def test_complete_says_whether_the_folder_is_whole(root, tmp_path):
    assert tinyworld.complete(root)
    assert not tinyworld.complete(str(tmp_path))
    tinyworld.write(str(tmp_path), scale=0.01)
    assert tinyworld.complete(str(tmp_path))
    paths.remove(str(tmp_path / "meta.json"))
    assert not tinyworld.complete(str(tmp_path))


def test_a_scale_that_is_not_positive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="above 0"):
        tinyworld.write(str(tmp_path), scale=0)


def test_every_set_is_there_and_loads(root):
    trained = {name: tasks.load(name, root, "train") for name in tasks.TASKS if name != "humaneval"}
    tested = {name: tasks.load(name, root, "test") for name in tasks.TASKS}
    assert all(len(task.problems) >= 20 for task in (*trained.values(), *tested.values()))
    assert len(tested["humaneval"].problems) == 20


def test_shards_have_several_row_groups_and_a_text_column(root):
    shards = sorted(os.listdir(f"{root}/pretrain"))
    assert shards == [f"shard_{i:05d}.parquet" for i in range(8)]
    for shard in shards:
        file = pq.ParquetFile(f"{root}/pretrain/{shard}")
        assert file.schema_arrow.names == ["text"]
    assert pq.ParquetFile(f"{root}/pretrain/{shards[0]}").num_row_groups > 1


def test_the_bundle_is_in_the_dclm_layout(root):
    listed = yaml.safe_load(paths.read_text(f"{root}/eval_bundle/core.yaml"))["icl_tasks"]
    chances = dict(
        line.split(",") for line in paths.read_text(f"{root}/eval_bundle/eval_meta_data.csv").splitlines()[1:]
    )
    needed = {
        "multiple_choice": {"query", "choices", "gold"},
        "schema": {"context_options", "continuation", "gold"},
        "language_modeling": {"context", "continuation"},
    }
    assert {task["label"] for task in listed} == set(chances)
    assert {task["icl_task_type"] for task in listed} == set(needed)
    for task in listed:
        items = rows(root, f"eval_bundle/eval_data/{task['dataset_uri']}")
        assert len(items) >= 20
        assert all(set(item) == needed[task["icl_task_type"]] for item in items)
        assert len({str(item) for item in items}) == len(items)


def test_schema_items_differ_in_the_context_and_share_the_ending(root):
    for item in rows(root, "eval_bundle/eval_data/language_understanding/which.jsonl"):
        assert len(set(item["context_options"])) == 2
        assert item["gold"] in (0, 1)
        assert item["continuation"].endswith(".")


def test_no_document_is_in_two_places(root):
    all_documents = [text for shard in range(8) for text in documents(root, shard)]
    assert len(set(all_documents)) == len(all_documents)


@pytest.mark.parametrize("name", CHOICE_FILES)
def test_no_test_question_is_asked_in_training(root, name):
    """A test question that shares its words with one of training has another answer, or is of kind, among others."""
    train = [question for file, _ in CHOICE_FILES.values() for question in questions(root, file)]
    test = questions(root, CHOICE_FILES[name][1])
    answered = {(text, choices[right]) for text, choices, right in train if not text.startswith("Which of these is")}
    assert not answered & {(text, choices[right]) for text, choices, right in test}
    posed = {(text, frozenset(choices)) for text, choices, _ in test}
    assert len(posed) == len(test)
    assert not posed & {(text, frozenset(choices)) for text, choices, _ in train}


def test_no_test_question_is_asked_in_the_pretraining_text_or_the_chats(root):
    held_out = {fact.state(template) for fact in TinyWorld(0).test_facts for template in fact.relation.questions}
    chats = rows(root, "chat/train.jsonl")
    asked = {message["content"] for row in chats for message in row["messages"] if message["role"] == "user"}
    lines = {line for shard in range(8) for text in documents(root, shard) for line in text.split("\n")}
    asked |= {line.removeprefix("Question: ").removeprefix("Q: ") for line in lines}
    assert not held_out & asked


def test_no_word_problem_of_the_test_is_trained_on(root):
    def numbers(row):
        return re.sub(r"[A-Z][a-z]+", "", row["question"])

    train, test = rows(root, "gsm8k/train.jsonl"), rows(root, "gsm8k/test.jsonl")
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    assert len({numbers(row) for row in test}) > len(test) / 2


def test_no_function_of_human_eval_is_in_the_pretraining_text_or_the_chats(root):
    lines = gzip.decompress(paths.read_bytes(f"{root}/humaneval/HumanEval.jsonl.gz")).decode().splitlines()
    read = "\n".join(text for shard in range(8) for text in documents(root, shard))
    read += paths.read_text(f"{root}/chat/train.jsonl")
    assert not [row for row in map(json.loads, lines) if f"def {row['entry_point']}(" in read]


@pytest.mark.parametrize("name", [file for pair in CHOICE_FILES.values() for file in pair])
def test_every_letter_is_right_equally_often(root, name):
    counts = collections.Counter(right for *_, right in questions(root, name))
    assert max(counts.values()) - min(counts.values()) <= 0.1 * sum(counts.values())


@pytest.mark.parametrize("name", [file for pair in CHOICE_FILES.values() for file in pair])
def test_choices_are_four_and_different(root, name):
    assert all(len(set(choices)) == len(choices) == 4 for _, choices, _ in questions(root, name))


def test_fact_questions_have_the_worlds_answer(root):
    world = TinyWorld(0)
    answers = {fact.state(t): fact.value for fact in world.facts.values() for t in fact.relation.questions}
    checked = 0
    for file in ("ai2_arc/ARC-Easy/test.jsonl", "ai2_arc/ARC-Easy/train.jsonl", "mmlu/test.jsonl"):
        for text, choices, right in questions(root, file):
            if text in answers:
                checked += 1
                assert choices[right] == answers[text]
    assert checked > 100


def test_two_step_questions_have_the_worlds_answer(root):
    world, checked = TinyWorld(0), 0
    for text, choices, right in questions(root, "ai2_arc/ARC-Challenge/test.jsonl"):
        match = re.fullmatch(r"What colour is the pet of (\w+)\?", text)
        if match:
            checked += 1
            assert choices[right] == world.value(world.value(match[1], "pet"), "colour")
    assert checked


def test_word_problems_are_worked_out_right(root):
    for row in rows(root, "gsm8k/train.jsonl"):
        calls = re.findall(r"<<(.*?)=(.*?)>>", row["answer"])
        assert calls
        assert all(tools.calculator(expression) == result for expression, result in calls)
        assert row["answer"].endswith(f"\n#### {calls[-1][1]}")
        assert len(row["question"]) < 250


def test_canonical_solutions_pass_their_tests(root):
    task = tasks.load("humaneval", root, "test")
    assert all(task.reward(problem, problem.messages[-1]["content"]) for problem in task.problems)
    assert not task.reward(task.problems[0], "    return None\n")


def test_functions_compute_what_their_names_say():
    compute = {f.name: f.compute for test in (True, False) for f in functions(test=test)}
    assert (compute["add_three"](5), compute["take_ten"](8), compute["times_seven"](12)) == (8, -2, 84)
    assert compute["is_five"](5) is True
    assert compute["more_than_eight"](8) is compute["less_than_two"](2) is False
    assert (compute["first_two"]("rabbit"), compute["repeat_three"]("a")) == ("ra", "aaa")
    assert (compute["count_e"]("tree"), compute["starts_with_a"]("snow")) == (2, False)


def test_the_text_states_every_fact_many_times(root):
    """Held-out facts included: they are what a model has to have read to answer the test's questions."""
    read = "\n".join(text for shard in range(7) for text in documents(root, shard))
    facts = TinyWorld(0).facts.values()
    missing = [fact.key for fact in facts if not any(fact.state(t) in read for t in fact.relation.statements)]
    assert len(missing) < 0.05 * len(facts)


def test_stories_fill_every_field():
    world, rng = TinyWorld(0), random.Random(0)
    for _ in range(300):
        text = story(world, rng) + short_story(world, rng)
        assert "{" not in text
        assert text.isascii()
    assert len(phrases.sections("plots")) >= 6


def test_kinds_and_relations_fit_together():
    assert {relation.kind for relation in relations()} == set(KINDS)
    names = [entity for kind in KINDS for entity in phrases.words(kind)]
    assert len(set(names)) == len(names)
    for relation in relations():
        assert len(set(relation.values)) == len(relation.values) >= 4


def test_documents_are_short_enough_for_a_small_context():
    world = TinyWorld(0)
    lengths = [len(d) for d, _ in zip(pretraining_documents(world, random.Random(0)), range(500), strict=False)]
    assert max(lengths) < 1500


def test_numbers_in_words():
    assert [number_name(n) for n in (0, 13, 20, 21, 99, 100, 142)] == [
        "zero", "thirteen", "twenty", "twenty-one", "ninety-nine", "one hundred", "one hundred and forty-two",
    ]  # fmt: skip


def test_repeated_words_are_the_same():
    checked = 0
    for seed in range(20):
        for line in lessons.repeating(TinyWorld(0), random.Random(seed)).splitlines():
            said = re.fullmatch(
                r"Read this: (.+)\. Read it again: (.+)\.|(\w+) wrote (.+), and (\w+) wrote (.+) under it\.", line
            )
            if said:
                first, second, person, third, other, fourth = said.groups()
                assert (first, third) == (second, fourth)
                assert person is None or person != other
                checked += 1
    assert checked > 10
    assert all(template.count("{words}") == 2 for template in phrases.phrases("lessons", "repeating"))


def test_a_named_question_names_its_right_choice_alone():
    asked = questions_of(TinyWorld(0), random.Random(0), NAMED, test=False)
    for question in itertools.islice(asked, 100):
        named = [choice for choice in question.choices if re.search(rf"\b{choice}\b", question.text)]
        assert named == [question.right]
        assert len(set(question.choices)) == 4

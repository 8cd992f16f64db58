"""Tasks: layouts of the real data sets read from local files and through `datasets`, prompts and rewards."""

import collections
import gzip
import json
import random
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from string import ascii_lowercase

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raychat import tasks
from raychat.chat import tools
from raychat.tasks import Problem, Task, chained, hold_out, joined, mixture
from raychat.tasks.choices import choice_problem
from raychat.tasks.gsm8k import final_number
from raychat.tasks.humaneval import extract_code
from raychat.tasks.spelling import letters_reward
from raychat.tasks.talks import identity_messages
from raychat.train.finetune import load_mixture

GSM8K = {"question": "Ann has 3 hens and buys 4. How many?", "answer": "She has 3+4=<<3+4=7>>7 hens.\n#### 7"}
ARC = {
    "id": "x",
    "question": "Which is an animal?",
    "choices": {"text": ["stone", "fox", "hat"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
MMLU = {"question": "2 + 2?", "subject": "sums", "choices": ["3", "4", "5", "6"], "answer": 1}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "source": "x"}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    """Return half of x."""\n',
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}


@pytest.fixture
def root(tmp_path):
    """A folder with a row of every data set."""
    contents = {
        "gsm8k/train.jsonl": [GSM8K],
        "gsm8k/test.jsonl": [GSM8K],
        "ai2_arc/ARC-Easy/test.jsonl": [
            ARC,
            ARC | {"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        ],
        "ai2_arc/ARC-Challenge/train.jsonl": [ARC],
        "mmlu/test.jsonl": [MMLU],
        "mmlu/auxiliary_train.jsonl": [MMLU | {"subject": ""}],
        "chat/some.jsonl": [TALK],
        "humaneval/HumanEval.jsonl.gz": [HUMANEVAL],
    }
    for name, rows in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(tmp_path)


def only(task):
    (problem,) = task.problems
    return problem


def test_multiple_choice_is_asked_with_the_letter_after_the_choice(root):
    problem = tasks.arc(root, "ARC-Easy").problems[0]
    assert problem.messages == [
        {
            "role": "user",
            "content": "Question: Which is an animal?\n- stone=A\n- fox=B\n- hat=C\nAnswer with the letter only.",
        },
        {"role": "assistant", "content": "B"},
    ]
    assert problem.letters == ("A", "B", "C")


def test_arc_keeps_the_labels_it_comes_with(root):
    task = tasks.arc(root, "ARC-Easy")
    assert task.problems[1].letters == ("1", "2")
    assert task.reward(task.problems[1], " 2\n") == 1.0


def test_arc_and_mmlu_are_asked_alike(root):
    arc, mmlu = only(tasks.load("arc-challenge", root, "train")), only(tasks.load("mmlu", root, "test"))
    assert mmlu.reference == "B"
    assert arc.messages[0]["content"].splitlines()[-1] == mmlu.messages[0]["content"].splitlines()[-1]


def test_only_the_bare_letter_earns_the_reward(root):
    task = tasks.mmlu(root, "train")
    rewards = [task.reward(only(task), said) for said in ("B", "B\n", "A", "b", "B.", "The answer is B", "")]
    assert rewards == [1, 1, 0, 0, 0, 0, 0]


def test_an_answer_that_is_no_choice_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        choice_problem("?", ["a", "b"], ["A", "B"], "C")
    with pytest.raises(ValueError, match="do not fit"):
        choice_problem("?", ["a", "b"], ["A", "B", "C"], "C")


def test_calculator_calls_become_tool_parts(root):
    assert only(tasks.gsm8k(root)).messages[-1]["content"] == [
        {"type": "text", "text": "She has 3+4="},
        {"type": "python", "text": "3+4"},
        {"type": "python_output", "text": "7"},
        {"type": "text", "text": "7 hens.\n#### 7"},
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 7", "7"),
        ("so it is\n#### 1,234", "1234"),
        ("#### $18", "18"),
        ("#### $1,250.50", "1250.5"),
        ("####-3", "-3"),
        ("#### -$3", "-3"),
        ("#### 12.", "12"),
        ("#### 0.75 miles", "0.75"),
        ("#### 7\n#### 8", "7"),
    ],
)
def test_final_number_is_found(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "7", "### 7", "#### seven", "#### .", "#### ,", "#### 1.2.3"])
def test_no_final_number_is_none(text):
    assert final_number(text) is None


@given(st.text())
def test_final_number_never_raises(text):
    final_number("#### " + text)


def test_gsm8k_rewards_the_number_not_its_spelling(root):
    task = tasks.gsm8k(root)
    rewards = [task.reward(only(task), said) for said in ("#### 7", "#### 7.00", "#### 8", "7", "so 7\n#### $7.")]
    assert rewards == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("completion", "passes"),
    [
        ("    return x / 2", True),  # continues the prompt
        ("```python\ndef half(x):\n    return x / 2\n```\nThat is all.", True),
        ("Here:\n```\ndef half(x):\n    return math.floor(x) / 2\n```", True),  # needs the prompt's import
        ("```python\ndef half(x):\n    return x / 2", True),  # the fence was cut off
        ("def half(x):\n    return x", False),
        ("I cannot.", False),
        ("", False),
        ("    return 2\n\nimport sys\nsys.exit(0)", False),
    ],
)
def test_human_eval_runs_the_completion_against_the_tests(root, completion, passes):
    task = tasks.humaneval(root)
    assert task.reward(only(task), completion) == float(passes)


def test_human_eval_reference_passes(root):
    task = tasks.humaneval(root)
    assert task.reward(only(task), only(task).messages[-1]["content"]) == 1.0


def test_code_is_taken_from_the_first_fence():
    assert extract_code("a\n```py\nx = 1\n```\nb\n```\ny\n```") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"


def test_spelling_bee_counts_with_the_tool(root):
    for problem in tasks.spelling_bee(root, "test").problems[:50]:
        parts = problem.messages[-1]["content"]
        call, output = (next(p["text"] for p in parts if p["type"] == kind) for kind in ("python", "python_output"))
        assert tools.calculator(call) == output == str(problem.reference)
        assert parts[-1]["text"].endswith(f"#### {output}")


def test_spelling_bee_asks_for_letters_of_the_word_and_for_others(root):
    """Four letters in five are drawn from the word, by occurrence; the fifth from the whole alphabet."""
    drawn, chances = [], []
    for problem in tasks.spelling_bee(root, "train").problems[:3000]:
        call = next(part["text"] for part in problem.messages[-1]["content"] if part["type"] == "python")
        letters, letter = re.fullmatch(r'"(.+)"\.count\("(.)"\)', call).groups()
        word = letters.replace("-", "")
        assert problem.reference == word.count(letter)
        drawn.append((word, letter))
        letters = sorted({*word, *ascii_lowercase})
        chances.append({c: 0.8 * word.count(c) / len(word) + 0.2 * (c in ascii_lowercase) / 26 for c in letters})
    for figure in (lambda word, c: c not in word, lambda word, c: word.count(c)):
        expected = variance = 0.0
        for (word, _), table in zip(drawn, chances, strict=True):
            mean = sum(chance * figure(word, c) for c, chance in table.items())
            expected += mean
            variance += sum(chance * (figure(word, c) - mean) ** 2 for c, chance in table.items())
        assert sum(figure(*pair) for pair in drawn) == pytest.approx(expected, abs=4 * variance**0.5)


def test_spelling_references_earn_their_rewards(root):
    bee, spell = tasks.spelling_bee(root, "train"), tasks.simple_spelling(root, "train")
    assert all(bee.reward(p, p.messages[-1]["content"][-1]["text"]) == 1.0 for p in bee.problems[:50])
    assert all(spell.reward(p, p.messages[-1]["content"]) == 1.0 for p in spell.problems[:50])


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("f-o-x", 1),
        ("f, o, x.", 1),
        ("fox: f-o-x", 1),
        ("It is\nf o x", 1),
        ("f-o-o-x", 0),
        ("fox", 0),
        ("F-O-X", 0),
        ("", 0),
    ],
)
def test_letters_may_be_separated_in_several_ways(said, reward):
    assert letters_reward(Problem([], reference="fox"), said) == reward


def test_no_word_is_both_trained_on_and_tested(root):
    words = {
        split: {problem.reference for problem in tasks.simple_spelling(root, split).problems}
        for split in ("train", "test")
    }
    assert len(words["train"]) > 3000  # the package's own list: the folder has none
    assert len(words["test"]) > 300
    assert not words["train"] & words["test"]


def test_the_folders_own_words_are_used(tmp_path):
    (tmp_path / "spelling").mkdir()
    (tmp_path / "spelling" / "words.txt").write_text("fox\nhen\nowl\nstone\ncat\ndog\n")
    found = tasks.simple_spelling(str(tmp_path), "train").problems
    assert {problem.reference for problem in found} <= {"fox", "hen", "owl", "stone", "cat", "dog"}


def test_conversations_are_taken_as_they_are(root):
    assert only(tasks.conversations(root, "train")).messages == TALK["messages"]


def test_conversation_files_are_chosen_by_their_names(tmp_path):
    (tmp_path / "chat").mkdir()
    for name, said in (("train-0", "a"), ("train-1", "b"), ("test", "c")):
        row = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said}]}
        (tmp_path / "chat" / f"{name}.jsonl").write_text(json.dumps(row))
    found = {
        s: [p.messages[0]["content"] for p in tasks.conversations(str(tmp_path), s).problems] for s in ("train", "test")
    }
    assert found == {"train": ["a", "b"], "test": ["c"]}


def test_free_conversations_have_no_reward(root):
    task = tasks.identity()
    with pytest.raises(ValueError, match="no reward"):
        task.reward(task.problems[0], "hello")


def test_identity_says_raychat_and_repeats_itself_exactly():
    once, again = tasks.identity().problems[:50], tasks.identity().problems[:50]
    assert list(once) == list(again)
    assert len({str(problem) for problem in once}) > 25
    assert any("raychat" in m["content"] for p in once for m in p.messages if m["role"] == "assistant")


def test_identity_messages_take_turns():
    for seed in range(20):
        roles = [message["role"] for message in identity_messages(random.Random(seed))]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


@pytest.mark.parametrize("name", [n for n in tasks.TASKS if n not in ("identity", "spelling-bee", "simple-spelling")])
def test_a_missing_file_is_named_with_its_layout(name, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        tasks.load(name, str(tmp_path), "test")
    assert "expected" in str(error.value)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        tasks.gsm8k(str(tmp_path))
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        tasks.gsm8k(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "row", "why"),
    [
        ("arc-easy", "ai2_arc/ARC-Easy/test.jsonl", {k: v for k, v in ARC.items() if k != "question"}, "question"),
        ("arc-easy", "ai2_arc/ARC-Easy/test.jsonl", {k: v for k, v in ARC.items() if k != "choices"}, "choices"),
        ("arc-easy", "ai2_arc/ARC-Easy/test.jsonl", {k: v for k, v in ARC.items() if k != "answerKey"}, "answerKey"),
        ("arc-easy", "ai2_arc/ARC-Easy/test.jsonl", ARC | {"choices": ["stone", "fox"]}, "TypeError"),
        ("mmlu", "mmlu/test.jsonl", MMLU | {"answer": "B"}, "KeyError('B')"),
        ("mmlu", "mmlu/test.jsonl", MMLU | {"answer": -1}, "KeyError(-1)"),
        ("mmlu", "mmlu/test.jsonl", [MMLU], "AttributeError"),
        ("gsm8k", "gsm8k/test.jsonl", GSM8K | {"answer": "seven"}, "should end in"),
        ("gsm8k", "gsm8k/test.jsonl", GSM8K | {"answer": 7}, "TypeError"),
        ("conversations", "chat/test.jsonl", {"text": "Hi"}, "messages"),
    ],
)
def test_a_row_in_another_layout_is_named(root, name, file, row, why):
    path = Path(root) / file
    before = path.read_text() if path.exists() else json.dumps(TALK) + "\n"
    path.write_text(f"{before}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line {before.count(chr(10)) + 2} has another")) as error:
        tasks.load(name, root, "test")
    assert why in str(error.value)
    assert "expected {" in str(error.value)
    assert json.dumps(row)[:40] in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "data", "message"),
    [
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            json.dumps(GSM8K).encode() + b'\n{"question": "\xff"}',
            ", line 2 is not JSON in",
        ),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", json.dumps(HUMANEVAL).encode(), " is no gzip file"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], " is no gzip file"),
    ],
)
def test_a_damaged_file_is_named(root, name, file, data, message):
    (Path(root) / file).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{Path(root) / file}{message}")) as error:
        tasks.load(name, root, "test")
    assert "expected" in str(error.value)


def test_an_unknown_task_or_split_is_refused(root):
    with pytest.raises(ValueError, match="arc-easy"):
        tasks.load("arcade", root, "test")
    with pytest.raises(ValueError, match="no split 'dev'"):
        tasks.load("gsm8k", root, "dev")
    with pytest.raises(ValueError, match="no split 'train'"):
        tasks.load("humaneval", root, "train")


def test_names_may_be_written_in_capitals_or_with_underscores(root):
    assert tasks.load("ARC-Easy", root, "test").name == tasks.load("arc_easy", root, "test").name == "ARC-Easy"


HUB_ROWS = {
    ("openai/gsm8k", "main", "train"): [GSM8K],
    ("openai/gsm8k", "main", "test"): [GSM8K],
    ("allenai/ai2_arc", "ARC-Easy", "test"): [ARC],
    ("allenai/ai2_arc", "ARC-Challenge", "test"): [ARC],
    ("cais/mmlu", "all", "test"): [MMLU],
    ("cais/mmlu", "auxiliary_train", "train"): [{"train": MMLU}],
    ("openai/openai_humaneval", "default", "test"): [HUMANEVAL],
    ("HuggingFaceTB/smol-smoltalk", "default", "train"): [TALK],
}


def test_the_hubs_data_sets_load_through_datasets(tmp_path, monkeypatch):
    """`load_dataset` takes a folder of the repository's name and layout for the repository."""
    configs = {}
    for (repo, config, split), rows in HUB_ROWS.items():
        folder = tmp_path / repo / config
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        files = configs.setdefault(repo, {}).setdefault(config, [])
        files.append({"split": split, "path": f"{config}/{split}.parquet"})
    for repo, found in configs.items():
        listed = [{"config_name": name, "data_files": files} for name, files in found.items()]
        (tmp_path / repo / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(tasks.load("gsm8k", tasks.HUB, "train")).reference == 7
    assert only(tasks.load("arc-easy", tasks.HUB, "test")).reference == "B"
    assert only(tasks.load("arc-challenge", tasks.HUB, "test")).letters == ("A", "B", "C")
    assert only(tasks.load("mmlu", tasks.HUB, "test")).reference == "B"
    assert only(tasks.load("mmlu", tasks.HUB, "train")).reference == "B"
    assert only(tasks.load("humaneval", tasks.HUB, "test")).reference["entry_point"] == "half"
    assert only(tasks.load("conversations", tasks.HUB, "train")).messages == TALK["messages"]


def counted(name, num):
    return Task(name, [Problem([{"role": "user", "content": f"{name}{i}"}]) for i in range(num)], 0.0, lambda p, c: 0.0)


def test_a_mixture_repeats_and_shuffles_in_an_order_of_its_seed():
    parts = [(counted("a", 5), 2), (counted("b", 3), 1), (counted("c", 4), 0)]
    names = [problem.messages[0]["content"] for problem in mixture(parts, seed=1)]
    assert sorted(names) == sorted([f"a{i}" for i in range(5)] * 2 + [f"b{i}" for i in range(3)])
    assert names == [problem.messages[0]["content"] for problem in mixture(parts, seed=1)]
    assert names != [problem.messages[0]["content"] for problem in mixture(parts, seed=2)]
    assert mixture(parts, seed=1)[2:4] == list(mixture(parts, seed=1))[2:4]


def test_joined_tasks_are_judged_each_by_its_own_reward():
    def rewarded(name, num, chance, reward):
        return replace(counted(name, num), chance=chance, reward=reward, max_new_tokens=num, guards=(name,))

    a = rewarded("a", 3, 0.25, lambda problem, text: float(text == problem.reference))
    b = rewarded("b", 2, 0.0, lambda problem, text: 10.0)
    a = replace(a, problems=[problem._replace(reference=f"a{i}") for i, problem in enumerate(a.problems)])
    both = joined([(a, 2), (b, 1)])
    assert (both.name, both.max_new_tokens, both.guards) == ("a + b", 3, ("a", "b"))
    assert both.chance == pytest.approx(6 / 8 * 0.25)
    earned = [both.reward(problem, "a1") for problem in both.problems]
    assert sorted(earned) == [0.0] * 4 + [1.0] * 2 + [10.0] * 2
    assert [problem.messages for problem in both.problems] == [p.messages for p in mixture([(a, 2), (b, 1)])]
    assert joined([(a, 1)]) is a


def test_then_mixes_what_follows_after_what_is_before():
    problems = chained([mixture([(counted("a", 3), 2)], seed=1), mixture([(counted("b", 2), 1), (counted("c", 2), 1)])])
    names = [problem.messages[0]["content"][0] for problem in problems]
    assert names[:6] == ["a"] * 6
    assert sorted(names[6:]) == ["b", "b", "c", "c"]


def test_a_stage_trains_on_the_tasks_behind_then_later_and_validates_on_all(monkeypatch):
    for name in "ab":
        monkeypatch.setitem(tasks.TASKS, name, lambda root, split, name=name: counted(name, 200))
    train, val = load_mixture(("a", "then", "a", "b*2"), "", seed=0)
    names = [problem.messages[0]["content"] for problem in train]
    assert [name[0] for name in names[:175]] == ["a"] * 175
    assert collections.Counter(name[0] for name in names[175:]) == {"a": 175, "b": 350}
    assert collections.Counter(problem.messages[0]["content"][0] for problem in val) == {"a": 25, "b": 25}
    assert not {problem.messages[0]["content"] for problem in val} & {*names}


@pytest.mark.parametrize("entries", [["then", "mmlu"], ["mmlu", "then"], ["mmlu", "then", "then", "gsm8k"], []])
def test_then_stands_between_tasks(entries):
    with pytest.raises(ValueError, match="expected tasks before and behind every 'then'"):
        tasks.in_turns(entries)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no problems"):
        mixture([(counted("a", 3), 0)])
    with pytest.raises(ValueError, match="0 times or more"):
        mixture([(counted("a", 3), -1)])


def test_held_out_problems_are_the_same_whatever_else_is_trained_on():
    def contents(task):
        return {problem.messages[0]["content"] for problem in task.problems}

    train, val = hold_out(counted("a", 100), 0.05)
    assert len(train.problems) == 95
    assert not contents(train) & contents(val)
    assert contents(train) | contents(val) == contents(counted("a", 100))
    assert contents(val) < contents(hold_out(counted("a", 100), 0.2)[1])
    mixed = mixture([(train, 3)], seed=5)
    assert not {problem.messages[0]["content"] for problem in mixed} & contents(val)

"""Chat tasks done by tiny models: one that always says the same, whose results are known, and a lively one."""

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from tiny import byte_tokenizer, scripted_model

from raychat.chat import template
from raychat.engine.sampling import SamplingParams
from raychat.evals import accuracy, samples
from raychat.evals import chat as evals_chat
from raychat.evals.chat import Sampling
from raychat.evals.evaluation import Evaluation, LoadedModel
from raychat.evals.generate import prompt
from raychat.model.gpt import GPTConfig
from raychat.tasks import Problem, Task, sandbox
from raychat.tasks.choices import choice_problem
from raychat.tokenizer import Tokenizer

CONFIG = GPTConfig(sequence_len=128, vocab_size=toy.VOCAB_SIZE, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)


def lively(seed: int = 0) -> LoadedModel:
    """A model whose predictions differ from token to token; a fresh one is nearly uniform."""
    model = toy.model(CONFIG, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "proj" in name or "lm_head" in name:
            torch.nn.init.normal_(p, std=0.3, generator=generator)
    return LoadedModel(model, byte_tokenizer())


def one_track(letter: str) -> LoadedModel:
    """A model that says the same letter whatever it reads."""
    model = toy.model(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.resid_scale.fill_(1)
        model.wte.weight.fill_(1)
        model.lm_head.weight[ord(letter)] = 1
    return LoadedModel(model, byte_tokenizer())


def choices(golds: str, letters: Sequence[str] = "ABCD") -> Task:
    problems = [
        choice_problem(
            f"Number {i}?" + "?" * (i % 5), [f"yes {i}", "no", "maybe", "never"][: len(letters)], letters, gold
        )
        for i, gold in enumerate(golds)
    ]
    return Task("choices", problems, 1 / len(letters), lambda problem, text: float(text == problem.reference))


def questions(num: int = 5, max_new_tokens: int = 6) -> Task:
    problems = [
        Problem([{"role": "user", "content": f"Say {i * 37}."}, {"role": "assistant", "content": str(i)}], reference=i)
        for i in range(num)
    ]
    return Task("questions", problems, 0.0, lambda problem, text: len(text.encode()) / 100, max_new_tokens)


def results(evaluation: Evaluation, loaded: LoadedModel) -> dict[str, Any]:
    return evaluation.finish([call(loaded) for call in evaluation.calls])


def test_one_track_model_is_right_where_its_letter_is() -> None:
    task = choices("ABCDBBA")
    (answers,) = evals_chat.evaluate_problems(one_track("B"), [(task, range(7))])
    assert [a.text for a in answers] == ["B"] * 7
    assert [a.reward for a in answers] == [0, 1, 0, 0, 1, 1, 0]


def test_only_the_letters_of_the_problem_count() -> None:
    """The likeliest token is no letter at all, the next one no letter of these problems."""
    loaded = one_track("x")
    with torch.no_grad():
        loaded.model.lm_head.weight[ord("D")] = 0.9
        loaded.model.lm_head.weight[ord("C")] = 0.5
    assert evals_chat.choose(loaded, choices("ABC", "ABC").problems) == ["C"] * 3


@pytest.mark.parametrize("batch_tokens", [1, 300, 10_000])
def test_choices_equal_those_of_one_prompt_at_a_time(batch_tokens: int) -> None:
    loaded, task = lively(seed=5), choices("ABCDABCDABCD")
    expected = []
    for problem in task.problems:
        ids = template.render_prompt(loaded.tokenizer, problem.messages[:-1])
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids]))[0, -1]
        expected.append(max("ABCD", key=lambda letter: logits[ord(letter)].item()))
    assert len(set(expected)) > 1
    assert evals_chat.choose(loaded, task.problems, batch_tokens) == expected


def test_bad_letters_are_named() -> None:
    loaded = lively()
    question, _ = choices("A").problems[0].messages
    wrong = Problem([question, {"role": "assistant", "content": "E"}], ("A", "B"))
    long = Problem([question, {"role": "assistant", "content": "AB"}], ("AB", "C"))
    with pytest.raises(ValueError, match="'E' is none of the letters A, B"):
        evals_chat.choose(loaded, [wrong])
    with pytest.raises(ValueError, match="'AB' is 2 tokens"):
        evals_chat.choose(loaded, [long])


def test_long_prompt_keeps_bos_and_tail() -> None:
    tokenizer = byte_tokenizer()
    problem = Problem(
        [{"role": "user", "content": "x" * 300 + "end"}, {"role": "assistant", "content": "A"}], ("A", "B")
    )
    ids = prompt(tokenizer, problem, 20)
    whole = template.render_prompt(tokenizer, problem.messages[:-1])
    assert ids == [tokenizer.bos, *whole[-19:]]
    assert prompt(tokenizer, problem, 1000) == whole
    assert evals_chat.choose(one_track("A"), [problem]) == ["A"]


def test_answers_equal_those_of_the_engine_alone() -> None:
    loaded, task = lively(), questions()
    indices = [3, 1, 4]
    for index, answer in zip(indices, evals_chat.generate(loaded.engine, task, indices), strict=True):
        ids = template.render_prompt(loaded.tokenizer, task.problems[index].messages[:-1])
        (alone,) = lively().engine.generate([ids], SamplingParams(temperature=0, max_new_tokens=6))
        assert answer.text == template.completion_text(loaded.tokenizer, alone.ids)
        assert answer.reward == pytest.approx(task.reward(task.problems[index], answer.text))


def test_reward_is_the_mean_over_samples() -> None:
    loaded, task = one_track("z"), questions(max_new_tokens=5)
    (answer,) = evals_chat.generate(loaded.engine, task, [0], Sampling(temperature=0.1, num_samples=3))
    assert answer == (pytest.approx((0.05,) * 3), "zzzzz")
    assert answer.reward == pytest.approx(0.05)


def test_samples_do_not_depend_on_how_problems_are_divided() -> None:
    sampling = Sampling(temperature=1.0, num_samples=2)
    task, loaded = questions(4, max_new_tokens=8), lively()
    whole = evals_chat.generate(loaded.engine, task, range(4), sampling)
    last = evals_chat.generate(loaded.engine, task, [2, 3], sampling)
    first = evals_chat.generate(lively().engine, task, [1, 0], sampling)
    assert whole == [*reversed(first), *last]
    assert len({a.text for a in whole}) > 1


def test_prompt_leaves_room_for_the_answer() -> None:
    loaded = one_track("z")
    problem = Problem([{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "A"}])
    task = Task("long", [problem], 0.0, lambda problem, text: float(len(text) == 20), max_new_tokens=20)
    assert evals_chat.generate(loaded.engine, task, [0])[0].reward == 1


@pytest.fixture
def data(tmp_path: Path) -> str:
    """ARC-Easy and GSM8K in their layouts: the answers are A, B, C, D, A, B, ..., and 0, 1, 2, ..."""
    arc, gsm8k = tmp_path / "ai2_arc" / "ARC-Easy", tmp_path / "gsm8k"
    arc.mkdir(parents=True)
    gsm8k.mkdir()
    with open(arc / "test.jsonl", "w") as file:
        for i in range(40):
            options = {"text": ["red", "blue", "green", "grey"], "label": list("ABCD")}
            row = {"id": str(i), "question": f"Colour {i}?", "choices": options, "answerKey": "ABCD"[i % 4]}
            file.write(json.dumps(row) + "\n")
    with open(gsm8k / "test.jsonl", "w") as file:
        for i in range(6):
            file.write(json.dumps({"question": f"{i} + 0?", "answer": f"<<{i}+0={i}>>{i}\n#### {i}"}) + "\n")
    return str(tmp_path)


def test_evaluation_of_tasks_in_files(data: str) -> None:
    evaluation = evals_chat.chat_evaluation(["arc-easy", "gsm8k"], data, sampling=Sampling(max_new_tokens=4))
    assert [call.part for call in evaluation.calls] == ["arc-easy", "gsm8k"]
    found = results(evaluation, one_track("C"))
    assert found["accuracy"] == {"arc-easy": 0.25, "gsm8k": 0.0}
    assert found["num_problems"] == {"arc-easy": 40, "gsm8k": 6}
    assert found["chance"] == {"arc-easy": 0.25, "gsm8k": 0.0}
    assert found["chatcore"] == 0
    assert [a["task"] for a in found["answers"]] == ["arc-easy", "arc-easy", "gsm8k", "gsm8k"]
    assert found["answers"][0] == {
        "task": "arc-easy",
        "question": "Question: Colour 0?\n- red=A\n- blue=B\n- green=C\n- grey=D\nAnswer with the letter only.",
        "reward": 0.0,
        "text": "C",
    }
    json.dumps(found)


def test_answers_to_all_tasks_are_generated_in_one_call_and_graded_by_their_own(data: str) -> None:
    """Each task has its own length and reward; a second call gets what is too much for the first."""
    loaded, short = lively(), questions(3, max_new_tokens=3)
    parts = [(short, [2, 0]), (questions(5, max_new_tokens=9), [1])]
    alone = [evals_chat.generate(lively().engine, task, indices) for task, indices in parts]
    assert evals_chat.generate_parts(loaded.engine, parts) == alone
    assert len(alone[1][0].text) > len(alone[0][0].text)
    names, sampling = ["gsm8k", "spelling-bee"], Sampling(num_samples=50, max_new_tokens=2)
    calls = evals_chat.chat_evaluation(names, data, max_problems=6, sampling=sampling).calls
    assert [call.part for call in calls] == ["gsm8k", "gsm8k, spelling-bee", "spelling-bee"]  # 5 problems, 250 answers
    assert [len(graded) for graded in calls[1](loaded)] == [1, 4]


def test_pass_at_k_counts_answers_of_the_whole_reward(data: str) -> None:
    evaluation = evals_chat.chat_evaluation(
        ["arc-easy", "gsm8k"], data, max_problems=2, sampling=Sampling(num_samples=2)
    )
    choices = [evals_chat.Graded((1.0,), "A"), evals_chat.Graded((0.0,), "B")]
    answers = [evals_chat.Graded((1.0, 0.0), "x"), evals_chat.Graded((0.5, 0.0), "y")]
    found = evaluation.finish([[choices], [answers]])
    assert found["pass_at_k"] == {"gsm8k": {"1": 0.25, "2": 0.5}}
    assert found["interval"].keys() == {"arc-easy", "gsm8k", "chatcore", "gsm8k pass@1", "gsm8k pass@2"}
    assert found["interval"]["gsm8k pass@2"] == [0, 1]  # two problems, one of them solved
    assert "pass@2 0.5000 [0.0000, 1.0000]" in accuracy.details(found)[0]
    assert found["accuracy"] == {"arc-easy": 0.5, "gsm8k": 0.375}
    assert found["outcomes"] == {"arc-easy": [1.0, 0.0], "gsm8k": [0.5, 0.25]}


HOSTILE = {
    "exits": "import os; os._exit(0)",
    "kills the parent": "import os; os.kill(os.getppid(), 9)",
    "forks without end": "import os\nwhile True: os.fork()",
    "truncates a library": "import json, os; os.truncate(json.__file__, os.stat(json.__file__).st_size)",
    "reads files": "open('/etc/passwd').read()",
}


@pytest.mark.parametrize(("act", "reward"), [*((act, 0.0) for act in HOSTILE.values()), ("", 1.0)], ids=[*HOSTILE, "-"])
def test_no_hostile_program_of_a_model_passes_and_the_guards_are_told(tmp_path: Path, act: str, reward: float) -> None:
    """The model's answer to every problem is one token: a right function, after an act that nobody permits."""
    try:
        guards = sandbox.guards()
    except ValueError as e:
        pytest.skip(str(e))
    if missing := sandbox.lacking(guards):
        pytest.skip(f"this system has no {missing}")
    problem = {"task_id": "0", "prompt": "def f(n):\n", "entry_point": "f", "canonical_solution": "    return 2 * n\n"}
    problem["test"] = "def check(candidate):\n    assert candidate(2) == 4\n"
    (tmp_path / "humaneval").mkdir()
    with gzip.open(tmp_path / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(problem) + "\n" + json.dumps(problem | {"task_id": "1"}) + "\n")
    tokenizer = Tokenizer([*byte_tokenizer().tokens, f"{act}\ndef f(n):\n    return 2 * n\n".encode()])
    start, end = (tokenizer.special[f"<|assistant_{name}|>"] for name in ("start", "end"))
    model = scripted_model([[start, len(tokenizer.tokens) - 1, end]], vocab_size=tokenizer.vocab_size)
    found = results(evals_chat.chat_evaluation(["humaneval"], str(tmp_path)), LoadedModel(model, tokenizer))
    assert found["outcomes"] == {"humaneval": [reward, reward]}
    assert found["guards"] == {"humaneval": list(guards)}
    assert f"programs ran under {', '.join(guards)}" in accuracy.details(found)[0]


def test_what_is_looked_for_is_the_question_of_a_choice_and_question_and_answer_else(data: str) -> None:
    texts = evals_chat.texts(["arc-easy", "gsm8k"], data, 3)
    assert len(texts["arc-easy"]) == len(texts["gsm8k"]) == 3
    assert all(text.startswith("Colour ") and text.endswith("?") for text in texts["arc-easy"])
    first, *_ = texts["gsm8k"]
    assert first.splitlines()[0].endswith("+ 0?")
    assert "####" in first


def test_fewer_problems_are_the_same_every_time(data: str) -> None:
    evaluate = functools.partial(evals_chat.chat_evaluation, ["arc-easy"], data, max_problems=10)
    found = results(evaluate(), lively())
    assert found["num_problems"] == {"arc-easy": 10}
    assert found == results(evaluate(), lively())


def test_absent_task_or_data_fails_before_the_work(data: str) -> None:
    with pytest.raises(ValueError, match="no task is called 'arc-hard'"):
        evals_chat.chat_evaluation(["arc-hard"], data)
    with pytest.raises(ValueError, match=r"no such file: .*HumanEval"):
        evals_chat.chat_evaluation(["humaneval"], data)
    with pytest.raises(ValueError, match="no tasks"):
        evals_chat.chat_evaluation([], data)


def test_samples_are_prompts_with_what_follows() -> None:
    loaded = one_track("q")
    assert results(samples.continuations(["Once", "Twice"], 3), loaded) == {
        "samples": [{"prompt": "Once", "text": "qqq"}, {"prompt": "Twice", "text": "qqq"}]
    }
    asked = results(samples.continuations(["Once"], 2, ["Who?"]), loaded)["samples"][1]
    assert asked == {"prompt": "Question: Who?\nAnswer:", "question": "Who?", "text": "qq"}
    assert results(samples.replies(["Hello?"], 2), loaded) == {"samples": [{"prompt": "Hello?", "text": "qq"}]}
    assert results(samples.replies([]), loaded) == {"samples": []}


def test_a_base_models_answer_ends_where_it_asks_further_questions() -> None:
    found = samples.continuations(["Once"], 9, ["Who?"]).finish([["\nQuestion: a", " I am.\n\nQuestion: b"]])
    assert [sample["text"] for sample in found["samples"]] == ["\nQuestion: a", "I am."]

"""base_eval and chat_eval on a tiny checkpoint: the figures are in eval.json, and are not made twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toy
import tyro
import yaml
from tiny import byte_tokenizer

from jobs import base_eval, chat_eval
from raychat import checkpoint, paths
from raychat.cluster import Cluster
from raychat.model.gpt import GPTConfig

CONFIG = GPTConfig(sequence_len=64, vocab_size=toy.VOCAB_SIZE, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run of a base and an SFT checkpoint, its corpus, a CORE bundle and ARC-Easy."""
    root = tmp_path_factory.mktemp("jobs")
    for shard in ("a", "b"):
        (root / f"{shard}.txt").write_text(f"{shard}: the cat sat on the mat, and the mat was flat.\n\n" * 60)
    data = [str(root / "a.txt"), str(root / "b.txt")]
    for stage in ("base", "sft"):
        folder = str(root / "storage" / "runs" / "t" / stage)
        model = toy.model(CONFIG)
        checkpoint.save_checkpoint(folder, model, None, byte_tokenizer(), toy.meta(5, model, data=tuple(data)))

    items = root / "bundle" / "eval_data" / "colours.jsonl"
    items.parent.mkdir(parents=True)
    rows = [{"query": f"Sky {i}?", "choices": ["blue", "green"], "gold": i % 2} for i in range(12)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"label": "colours", "dataset_uri": "colours.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice"}
    (root / "bundle" / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": [task]}))
    (root / "bundle" / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolours,50\n")

    arc = root / "tasks" / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    arc.parent.mkdir(parents=True)
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    rows = [{"id": str(i), "question": f"Q{i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(8)]
    arc.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def storage(made: Path, tmp_path: Path) -> Cluster:
    """A copy of it for the test, in this process."""
    shutil.copytree(made / "storage", tmp_path / "storage")
    return Cluster(workers=0, storage_path=str(tmp_path / "storage"))


def base_args(made: Path, storage: Cluster, **settings: Any) -> base_eval.Args:
    return base_eval.Args(run="t", bundle=str(made / "bundle"), eval_tokens=500, cluster=storage, **settings)


def test_base_eval_writes_bpb_core_and_samples(made: Path, storage: Cluster) -> None:
    found = base_eval.run(base_args(made, storage, prompts=("The cat",)))
    assert found == paths.read_json(storage.run_folder("t", "base", "eval.json"))
    assert 0 < found["val_bpb"] < 20
    assert found["core_tasks"]["colours"]["num_items"] == 12
    assert found["core"] == pytest.approx((found["core_tasks"]["colours"]["accuracy"] - 0.5) / 0.5)
    assert [s["prompt"] for s in found["samples"] if "question" not in s] == ["The cat"]
    assert [s["question"] for s in found["samples"][1:]] == list(chat_eval.Args().questions)
    assert (found["checkpoint"], found["step"]) == ("step_000005", 5)


def test_prompts_are_beginnings_of_validation_documents(made: Path, storage: Cluster) -> None:
    found = base_eval.run(base_args(made, storage, max_items=2))
    prompts = {s["prompt"] for s in found["samples"] if "question" not in s}
    assert prompts == {"b: the cat s"}  # twelve tokens, each a byte, of the last shard


def test_one_text_is_validated_on_at_its_end_and_core_is_left_out(made: Path, storage: Cluster) -> None:
    text = "a cat sat. " * 90 + "its hat was flat. " * 10
    (made / "text.txt").write_text(text)
    found = base_eval.run(base_args(made, storage, tasks=(), data=(str(made / "text.txt"),), questions=()))
    assert not {"core", "core_tasks"} & found.keys()
    assert [s["prompt"] for s in found["samples"]] == [text[int(0.9 * len(text)) :][:12].strip()]
    assert found["val_loss"] > 0


def test_evaluation_is_made_once_per_checkpoint_and_settings(
    made: Path, storage: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    first = base_eval.run(base_args(made, storage, max_items=4))
    assert "evaluated already" not in capsys.readouterr().out
    assert base_eval.run(base_args(made, storage, max_items=4)) == first
    assert "evaluated already" in capsys.readouterr().out
    assert base_eval.run(base_args(made, storage, max_items=3))["core_tasks"]["colours"]["num_items"] == 3
    model = toy.model(CONFIG, seed=1)
    meta = toy.meta(9, model, data=(str(made / "a.txt"), str(made / "b.txt")))
    checkpoint.save_checkpoint(storage.run_folder("t", "base"), model, None, byte_tokenizer(), meta)
    again = base_eval.run(base_args(made, storage, max_items=3))
    assert (again["step"], again["val_bpb"] != first["val_bpb"]) == (9, True)


def test_chat_eval_takes_the_tasks_that_are_there(
    made: Path, storage: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    args = chat_eval.Args(run="t", task_data=str(made / "tasks"), max_problems=6, questions=("Hi?",), cluster=storage)
    found = chat_eval.run(args)
    assert found == paths.read_json(storage.run_folder("t", "sft", "eval.json"))
    assert found["num_problems"] == {"arc-easy": 6, "spelling-bee": 6}  # the latter needs no data
    assert found["samples"][0]["prompt"] == "Hi?"
    said = capsys.readouterr().out
    assert "not evaluated: gsm8k: no such file" in said
    assert "ChatCORE" in said


def test_task_asked_for_without_data_is_an_error(made: Path, storage: Cluster) -> None:
    with pytest.raises(ValueError, match=r"no such file: .*gsm8k"):
        chat_eval.run(chat_eval.Args(run="t", tasks=("gsm8k",), task_data=str(made / "tasks"), cluster=storage))


def test_answers_are_as_long_as_asked(made: Path, storage: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting of its own in eval.json, absent where it is not given: older files have none."""
    args = chat_eval.Args(run="t", tasks=("spelling-bee",), max_problems=2, questions=(), cluster=storage)
    own = chat_eval.run(args)
    assert "max_new_tokens" not in own["settings"]
    short = chat_eval.run(replace(args, max_new_tokens=3))
    assert short["settings"] == {**own["settings"], "max_new_tokens": 3}
    assert all(len(a["text"]) <= 3 < len(b["text"]) for a, b in zip(short["answers"], own["answers"], strict=True))
    assert "evaluated already" not in capsys.readouterr().out
    assert chat_eval.run(replace(args, max_new_tokens=3)) == short
    assert "evaluated already" in capsys.readouterr().out


def test_items_in_the_training_text_are_told(made: Path, storage: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the two tasks' items only one is in the first shard; the second shard is not trained on."""
    root = Path(storage.storage()) / "own"
    shutil.copytree(made / "bundle", root / "bundle")
    hit, other = "the cat sat on the mat and the mat was", "nine other words that nobody ever has written here"
    rows = [{"query": text, "choices": ["flat", "red"], "gold": 0} for text in (hit, other)]
    rows.append({"query": "a short one", "choices": ["flat", "red"], "gold": 0})
    (root / "bundle" / "eval_data" / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = replace(base_args(made, storage, contamination=9, prompts=("a",)), bundle=str(root / "bundle"))
    found = base_eval.run(args)
    right = found["outcomes"]["colours"]
    expected = {"checked": 2, "hits": 1, "share": 0.5, "clean_accuracy": right[1]}
    assert found["contamination"].keys() == {"colours"}
    assert found["contamination"]["colours"].items() >= expected.items()
    assert "1 of 2 items are in the training text" in capsys.readouterr().out
    assert base_eval.run(replace(args, contamination=10))["contamination"]["colours"]["hits"] == 1
    assert "evaluated already" not in capsys.readouterr().out


def test_problems_are_looked_for_in_the_base_stages_text(made: Path, storage: Cluster) -> None:
    arc = Path(storage.storage()) / "tasks" / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    arc.parent.mkdir(parents=True)
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    questions = ("Cat sat on the mat, and the mat was flat?", "Which colour does nobody here like at all today?")
    rows = [{"id": str(i), "question": q, "choices": choices, "answerKey": "A"} for i, q in enumerate(questions)]
    arc.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(arc.parent.parent.parent)
    args = chat_eval.Args(run="t", tasks=("arc-easy",), task_data=data, contamination=8, questions=(), cluster=storage)
    found = chat_eval.run(args)["contamination"]["arc-easy"]
    assert (found["checked"], found["hits"]) == (2, 1)
    low, high = found["interval"]["clean_accuracy"]
    assert low <= found["clean_accuracy"] <= high
    shutil.rmtree(storage.run_folder("t", "base"))
    with pytest.raises(ValueError, match=r"text of the base stage, but .*base has no checkpoint"):
        chat_eval.run(replace(args, contamination=9))


def test_several_answers_give_pass_at_k_and_every_figure_an_interval(
    made: Path, storage: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_problems": 4, "num_samples": 4, "temperature": 1.0, "max_new_tokens": 5, "questions": ()}
    found = chat_eval.run(chat_eval.Args(run="t", task_data=str(made / "tasks"), cluster=storage, **settings))
    assert list(found["pass_at_k"]) == ["spelling-bee"]
    assert list(found["pass_at_k"]["spelling-bee"]) == ["1", "2", "4"]
    rates = {f"spelling-bee pass@{k}" for k in (1, 2, 4)}
    assert found["interval"].keys() == {"arc-easy", "spelling-bee", "chatcore"} | rates
    assert {name: len(of_task) for name, of_task in found["outcomes"].items()} == {"arc-easy": 4, "spelling-bee": 4}
    assert found["seconds"].keys() == {"arc-easy", "spelling-bee", "samples"}
    shown = capsys.readouterr().out
    assert "pass@4" in shown
    assert f"ChatCORE {found['chatcore']:.4f} [{found['interval']['chatcore'][0]:.4f}, " in shown


@pytest.mark.parametrize("job", [base_eval, chat_eval])
def test_help_shows_every_command_on_a_line(
    job: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    commands = [line.strip() for line in str(job.__doc__).splitlines() if "python jobs/" in line]
    assert len(commands) == 2
    with pytest.raises(SystemExit):
        tyro.cli(job.Args, description=job.__doc__, args=["--help"])
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if "python jobs/" in line] == commands


def test_stage_without_checkpoint_is_an_error(storage: Cluster) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint in .*runs/t/rl to evaluate"):
        chat_eval.run(chat_eval.Args(run="t", stage="rl", cluster=storage))


def test_protocol_is_a_setting_of_both(made: Path, storage: Cluster) -> None:
    own = base_eval.run(base_args(made, storage, prompts=()))
    other = base_eval.run(base_args(made, storage, prompts=(), protocol="nanochat"))
    assert other["outcomes"] != own["outcomes"]
    args = chat_eval.Args(run="t", task_data=str(made / "tasks"), questions=(), protocol="nanochat", cluster=storage)
    assert chat_eval.run(args)["answers"][0]["question"].startswith("Multiple Choice question: Q0?\n- red=A\n")

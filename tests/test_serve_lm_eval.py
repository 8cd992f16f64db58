"""lm-eval, unmodified, against the API. It is a program of its own: `pip install "lm-eval[api]"`, anywhere on PATH."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_serve import END, START, TOKENIZER, service
from tiny import http_server, random_model, scripted_model

from raychat.model.gpt import GPT

LM_EVAL = shutil.which("lm_eval")
CONTEXT = 160

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LM_EVAL is None, reason='needs lm-eval on PATH (pip install "lm-eval[api]")'),
]

QUESTIONS = [
    {"text": "The sky is", "choices": [" blue", " made of cheese"], "label": 0},
    {"text": "Two and two are", "choices": [" five", " four", " six"], "label": 1},
    {"text": "A cat says", "choices": [" woof", " meow"], "label": 1},
]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}]
"""
GENERATE = """
output_type: generate_until
doc_to_text: text
doc_to_target: "abc"
generation_kwargs: {until: ["x", "\\n"], max_gen_toks: 10}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks on the same three questions."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.json"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name, rest in (("choices", CHOICES), ("generate", GENERATE), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"raychat_{name}", data=data) + rest)
    return folder


def evaluate(tasks: Path, tmp_path: Path, model: str, url: str, task: str, *arguments: str) -> dict[str, Any]:
    """Run lm-eval; return its results of the task."""
    settings = f"model=tiny-sft,base_url={url},max_length={CONTEXT}"
    command = [str(LM_EVAL), "--model", model, "--model_args", settings, "--tasks", f"raychat_{task}"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (results,) = tmp_path.rglob("results*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"][f"raychat_{task}"]
    return found


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(sequence_len=CONTEXT)


@pytest.fixture(scope="module")
def random(model: GPT) -> Iterator[str]:
    with http_server(service(model)) as url:
        yield url


@pytest.fixture(scope="module")
def letters() -> Iterator[str]:
    """A model that says "abc" to every question, and after every "s"."""
    scripts = [[START, *b"abc", END], [ord("s"), *b"abc"], [ord("e"), *b"abc"]]
    with http_server(service(scripted_model(scripts, sequence_len=CONTEXT))) as url:
        yield url


def log_likelihood(model: GPT, context: list[int], rest: list[int]) -> float:
    with torch.inference_mode():
        logprobs = model(torch.tensor([context + rest]))[0].float().log_softmax(-1)
    return sum(logprobs[len(context) + i - 1, token].item() for i, token in enumerate(rest))


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_choices_are_scored_as_the_model_scores_them(
    tasks: Path, tmp_path: Path, model: GPT, random: str, batch_size: str
) -> None:
    url = f"{random}/v1/completions"
    results = evaluate(tasks, tmp_path, "local-completions", url, "choices", "--batch_size", batch_size)
    right = 0
    for question in QUESTIONS:
        context = TOKENIZER.encode(str(question["text"]))
        scores = [log_likelihood(model, context, TOKENIZER.encode(c)) for c in question["choices"]]  # type: ignore[attr-defined]
        right += scores.index(max(scores)) == question["label"]
    assert results["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_bits_per_byte_of_a_text(tasks: Path, tmp_path: Path, model: GPT, random: str) -> None:
    results = evaluate(tasks, tmp_path, "local-completions", f"{random}/v1/completions", "rolling")
    texts = [TOKENIZER.encode(str(question["text"])) for question in QUESTIONS]
    bits = -sum(log_likelihood(model, [TOKENIZER.bos], text) for text in texts) / 0.6931471805599453
    assert results["bits_per_byte,none"] == pytest.approx(bits / sum(map(len, texts)), rel=1e-3)


def test_text_is_generated(tasks: Path, tmp_path: Path, letters: str) -> None:
    results = evaluate(tasks, tmp_path, "local-completions", f"{letters}/v1/completions", "generate")
    assert results["exact_match,none"] == pytest.approx(2 / 3)  # of the texts two end in "s" or "e"


def test_chat_answers_are_generated(tasks: Path, tmp_path: Path, letters: str) -> None:
    url = f"{letters}/v1/chat/completions"
    results = evaluate(tasks, tmp_path, "local-chat-completions", url, "generate", "--apply_chat_template")
    assert results["exact_match,none"] == 1

"""lm-eval, unmodified, against the API. It is a program of its own: `pip install "lm-eval[api]"`, anywhere on PATH."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_serve import END, START, TOKENIZER, service
from tiny import scripted_model
from tiny_server import http_server

from raychat.model.gpt import GPT

LM_EVAL = shutil.which("lm_eval")
CONTEXT = 160

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LM_EVAL is None, reason='needs lm-eval on PATH (pip install "lm-eval[api]")'),
    pytest.mark.timeout(900),
]

QUESTIONS: list[dict[str, Any]] = [
    {"text": "The sky is", "choices": ["blue", "made of cheese"], "label": 0},
    {"text": "Two and two are", "choices": ["five", "four", "six"], "label": 1},
    {"text": "A cat says it", "choices": ["woof", "meow"], "label": 1},
]

TASK = """
task: raychat_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
""",
    "generate": """
output_type: generate_until
doc_to_text: text
doc_to_target: "abc"
generation_kwargs: {until: ["x", "\\n"], max_gen_toks: 10}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model that says "abc" to every question, and goes on with it after "s" and "e"."""
    scripts = [[START, *b"abc", END], [ord("s"), *b"abc"], [ord("e"), *b"abc"]]
    return scripted_model(scripts, sequence_len=CONTEXT)


@pytest.fixture(scope="module")
def url(model: GPT) -> Iterator[str]:
    with http_server(service(model)) as url:
        yield url


def evaluate(folder: Path, model: str, url: str, tasks: list[str], *arguments: str) -> Path:
    """Run lm-eval on these tasks; return the folder of its results."""
    data = folder / "questions.json"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name in tasks:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + TASKS[name])
    command = [str(LM_EVAL), "--model", model, "--tasks", ",".join(f"raychat_{name}" for name in tasks)]
    command += ["--model_args", f"model=tiny-sft,base_url={url},max_length={CONTEXT}", "--log_samples"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "results"), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "results"


def score(results: Path, task: str, metric: str) -> float:
    (file,) = results.rglob("results_*.json")
    return float(json.loads(file.read_text())["results"][f"raychat_{task}"][f"{metric},none"])


def samples(results: Path, task: str) -> list[dict[str, Any]]:
    """What lm-eval logged of each question, in order."""
    (file,) = results.rglob(f"samples_raychat_{task}_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module")
def completions(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completions")
    return evaluate(folder, "local-completions", f"{url}/v1/completions", list(TASKS), "--batch_size", "4")


def log_likelihood(model: GPT, context: list[int], rest: list[int]) -> float:
    with torch.inference_mode():
        logprobs = model(torch.tensor([context + rest]))[0].float().log_softmax(-1)
    return sum(logprobs[len(context) + i - 1, token].item() for i, token in enumerate(rest))


def test_choices_are_scored_as_the_model_scores_them(completions: Path, model: GPT) -> None:
    for question, sample in zip(QUESTIONS, samples(completions, "choices"), strict=True):
        context = TOKENIZER.encode(question["text"])
        expected = [log_likelihood(model, context, TOKENIZER.encode(f" {choice}")) for choice in question["choices"]]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)


def test_bits_per_byte_of_a_text(completions: Path, model: GPT) -> None:
    texts = [TOKENIZER.encode(question["text"]) for question in QUESTIONS]
    bits = -sum(log_likelihood(model, [TOKENIZER.bos], text) for text in texts) / math.log(2)
    assert score(completions, "rolling", "bits_per_byte") == pytest.approx(bits / sum(map(len, texts)), rel=1e-4)


def test_text_is_generated(completions: Path) -> None:
    """Two of the texts end in "s" or "e"."""
    assert [sample["exact_match"] for sample in samples(completions, "generate")][:2] == [1, 1]
    assert score(completions, "generate", "exact_match") == pytest.approx(2 / 3)


def test_chat_answers_are_generated(url: str, tmp_path: Path) -> None:
    model, route = "local-chat-completions", "v1/chat/completions"
    results = evaluate(tmp_path, model, f"{url}/{route}", ["generate"], "--apply_chat_template")
    assert score(results, "generate", "exact_match") == 1

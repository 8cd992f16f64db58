"""lm-eval's `hf` model, unmodified, on an exported model. It is a program of its own: `pip install "lm-eval[hf]"`."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from test_serve_lm_eval import LM_EVAL, QUESTIONS, TASK, TASKS, log_likelihood, samples, score
from tiny import byte_tokenizer, random_model

from raychat.interchange import hf_export

TOKENIZER = byte_tokenizer()


@pytest.mark.slow
@pytest.mark.skipif(LM_EVAL is None, reason='needs lm-eval on PATH (pip install "lm-eval[hf]")')
@pytest.mark.timeout(1800)
def test_choices_are_scored_as_the_model_scores_them(tmp_path: Path) -> None:
    model = random_model()
    exported, data = tmp_path / "model", tmp_path / "questions.json"
    exported.mkdir()
    hf_export.write_model(str(exported), model, TOKENIZER, chat=False)
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "choices.yaml").write_text(TASK.format(name="choices", data=data) + TASKS["choices"])
    command = [str(LM_EVAL), "--model", "hf", "--model_args", f"pretrained={exported},trust_remote_code=True"]
    command += ["--tasks", "raychat_choices", "--include_path", str(tmp_path), "--device", "cpu", "--batch_size", "4"]
    command += ["--log_samples", "--output_path", str(tmp_path / "results")]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    right = []
    for question, sample in zip(QUESTIONS, samples(tmp_path / "results", "choices"), strict=True):
        context = [TOKENIZER.bos, *TOKENIZER.encode(question["text"])]
        expected = [log_likelihood(model, context, TOKENIZER.encode(f" {choice}")) for choice in question["choices"]]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)
        right.append(expected.index(max(expected)) == question["label"])
    assert score(tmp_path / "results", "choices", "acc") == pytest.approx(sum(right) / len(right))

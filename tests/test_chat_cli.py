"""The chat in the terminal, on a checkpoint whose answers are known."""

import sys
from pathlib import Path
from typing import Any

import pytest
import toy
from tiny import byte_tokenizer, scripted_model

from jobs.chat_cli import Args, run
from raychat.checkpoint import save_checkpoint

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
SAYS = "<<6*7=42>>é!"


@pytest.fixture
def checkpoint(raychat_home: Path) -> None:
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    answer = [SPECIAL["<|output_end|>"], *"é!".encode(), SPECIAL["<|assistant_end|>"]]
    model = scripted_model([[SPECIAL["<|assistant_start|>"], *call], answer], sequence_len=100)
    save_checkpoint(str(raychat_home / "runs" / "r" / "sft"), model, None, TOKENIZER, toy.meta(3, model))


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str) -> str:
    said = iter([*lines, ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    return run(Args(temperature=0))


def test_one_prompt_prints_one_answer(checkpoint: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Args(prompt="6 times 7?", temperature=0)) == SAYS
    assert capsys.readouterr().out == SAYS + "\n"


def test_conversation_goes_on_until_an_empty_line(
    checkpoint: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "6 times 7?", "Really?") == SAYS
    out = capsys.readouterr().out
    assert "r-sft" in out
    assert out.count(SAYS) == 2


def test_full_context_is_said_and_new_begins_again(
    checkpoint: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, "x" * 60, "y" * 60, "/new", "y" * 60)
    out = capsys.readouterr().out
    assert out.count(SAYS) == 2
    assert "expected 1 to 100" in out


def test_interrupted_answer_does_not_end_the_conversation(
    checkpoint: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = iter([True])

    def write(text: str, write: Any = sys.stdout.write) -> int:
        if text == "=" and next(interrupts, False):
            raise KeyboardInterrupt
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", write)
    assert talk(monkeypatch, "6 times 7?", "Really?") == SAYS
    assert "<<6*7 (stopped)" in capsys.readouterr().out


def test_no_checkpoint_says_what_to_do(raychat_home: Path) -> None:
    with pytest.raises(ValueError, match="make speedrun-tiny"):
        run(Args(prompt="Hello?"))

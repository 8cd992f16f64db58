"""The chat job: one prompt, a pipe, a terminal and wrong settings, with a checkpoint whose answer is known."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from tiny import byte_tokenizer, scripted_model

from jobs.chat_cli import Args, run
from raychat.checkpoint import save_checkpoint

JOB = Path(__file__).parent.parent / "jobs" / "chat_cli.py"
TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
SAYS = "<<6*7=42>>é!"


@pytest.fixture
def checkpoint(raychat_home: Path) -> Path:
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    answer = [SPECIAL["<|output_end|>"], *"é!".encode(), SPECIAL["<|assistant_end|>"]]
    model = scripted_model([[SPECIAL["<|assistant_start|>"], *call], answer], sequence_len=100)
    save_checkpoint(str(raychat_home / "runs" / "r" / "sft"), model, None, TOKENIZER, toy.meta(3, model))
    return raychat_home


def job(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(JOB), "--temperature", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_one_prompt_prints_one_answer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Args(prompt="6 times 7?", temperature=0)) == SAYS
    assert capsys.readouterr() == (SAYS + "\n", "")


def test_prompt_that_does_not_fit_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="expected 1 to 100"):
        run(Args(prompt="x" * 200))


def test_system_prompt_takes_part(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="expected 1 to 100"):
        run(Args(prompt="6 times 7?", system="x" * 200))


def test_no_checkpoint_says_what_to_do(raychat_home: Path) -> None:
    with pytest.raises(ValueError, match="make speedrun-tiny"):
        run(Args(prompt="Hello?"))


def test_setting_out_of_range_has_the_name_of_its_flag(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens is 0; expected a whole number >= 1"):
        run(Args(prompt="Hello?", max_tokens=0))


@pytest.mark.slow
def test_pipe_gets_answers_alone_and_one_line_for_what_is_wrong(checkpoint: Path) -> None:
    done = job(input="6 times 7?\n\n/set warmth 1\nReally?\n")
    assert (done.returncode, done.stdout) == (0, f"{SAYS}\n{SAYS}\n")
    assert done.stderr.startswith("no setting 'warmth'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_wrong_run_is_a_sentence_without_a_traceback(checkpoint: Path) -> None:
    done = job("--run", "x", input="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("chat_cli: no checkpoint of the stages rl, sft, mid")
    assert len(done.stderr.splitlines()) == 1


class Keyboard:
    """A process in a terminal, and what it has written there and nobody has waited for."""

    def __init__(self, *command: str) -> None:
        self.screen = ""
        self._fd, inner = pty.openpty()
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner)
        os.close(inner)

    def wait_for(self, text: str, timeout_s: float = 100) -> None:
        """Read until the screen has shown a text, after those that were waited for before."""
        end = time.monotonic() + timeout_s
        while text not in self.screen:
            readable, _, _ = select.select([self._fd], [], [], max(0, end - time.monotonic()))
            assert readable, f"{text!r} did not come; the screen shows {self.screen!r}"
            self.screen += os.read(self._fd, 4096).decode(errors="replace")
        self.screen = self.screen.partition(text)[2]

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())


@pytest.fixture
def keyboard(checkpoint: Path) -> Iterator[Keyboard]:
    """The job in a terminal."""
    keyboard = Keyboard(sys.executable, str(JOB), "--temperature", "0")
    try:
        yield keyboard
    finally:
        keyboard.process.kill()
        keyboard.process.wait()


@pytest.mark.slow
def test_terminal_edits_lines_and_remembers_them(keyboard: Keyboard, raychat_home: Path) -> None:
    keyboard.wait_for("r-sft, step 3")
    keyboard.wait_for("> ")
    keyboard.press("\n")  # an empty line does not end it
    keyboard.wait_for("> ")
    keyboard.press("7 times 6?\x1b[D\x7f8\n")  # cursor left, backspace, 8
    for text in (SAYS, "tok/s", "> "):
        keyboard.wait_for(text)
    keyboard.press("/undo\n")
    for text in ("took back: 7 times 8?", "> "):
        keyboard.wait_for(text)
    keyboard.press("\x1b[200~6 times\n7?\x1b[201~\n")  # pasted: one question of two lines
    for text in (SAYS, "tok/s", "> "):
        keyboard.wait_for(text)
    keyboard.press("/undo\n")
    for text in ("took back: 6 times\r\n7?", "> "):
        keyboard.wait_for(text)
    keyboard.press("/mod\t\n")  # completed to /model, which lists
    for text in ("* r-sft", "> "):
        keyboard.wait_for(text)
    keyboard.press("\x04")  # Ctrl-D
    assert keyboard.process.wait(60) == 0
    history = raychat_home / "chat_history"
    assert history.read_text().splitlines() == ["7 times 8?", "/undo", "6 times", "7?", "/undo", "/model"]
    assert history.stat().st_mode & 0o777 == 0o600

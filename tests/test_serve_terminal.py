"""The chat in a terminal: every command, and what does not end it."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from tiny import byte_tokenizer, scripted_model

from raychat.chat.template import render
from raychat.checkpoint import save_checkpoint
from raychat.engine.sampling import SamplingParams
from raychat.runs import find_checkpoint
from raychat.serve.terminal import COMMANDS, Terminal
from raychat.tasks.source import file_problems
from raychat.tasks.task import Problem

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special


def save(storage: Path, stage: str, step: int, says: bytes) -> None:
    """Save a checkpoint that answers everything with this text."""
    script = [SPECIAL["<|assistant_start|>"], *says, SPECIAL["<|assistant_end|>"]]
    model = scripted_model([script], sequence_len=100)
    save_checkpoint(str(storage / "runs" / "r" / stage), model, None, TOKENIZER, toy.meta(step, model))


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    save(tmp_path, "sft", 200, b"older")
    save(tmp_path, "sft", 300, b"fresh")
    save(tmp_path, "mid", 100, b"mid")
    return Terminal(str(tmp_path), find_checkpoint(str(tmp_path)), SamplingParams(temperature=0))


Read = Callable[[str], tuple[str, str]]


@pytest.fixture
def read(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> Read:
    """Return a function that reads a line and returns what stdout and stderr got."""

    def read(line: str) -> tuple[str, str]:
        terminal.read(line)
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return read


def test_answer_goes_to_stdout_alone(read: Read) -> None:
    assert read("Hi") == ("fresh\n", "")


def test_empty_line_is_no_question(terminal: Terminal, read: Read) -> None:
    assert read("  ") == ("", "")
    assert terminal.conversation.turns == []


def test_help_names_every_command(read: Read) -> None:
    out, err = read("/help")
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == list(COMMANDS)


@pytest.mark.parametrize("line", ["/", "/hlep", "/fresh than what?"])
def test_unknown_command_says_where_the_others_are(read: Read, line: str) -> None:
    out, err = read(line)
    assert out == ""
    assert "/help lists them" in err


def test_space_makes_a_question_of_a_slash(read: Read) -> None:
    assert read(" /etc is what?")[0] == "fresh\n"


def test_new_forgets_the_conversation(terminal: Terminal, read: Read) -> None:
    read("/system Be kind.")
    read("Hi")
    assert read("/new") == ("", "")
    assert terminal.conversation.messages == [{"role": "system", "content": "Be kind."}]


def test_model_lists_what_there_is_and_marks_its_own(read: Read) -> None:
    lines = read("/model")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["r-mid", "step", "100"],
        ["*", "r-sft", "step", "300"],
        ["r-sft@200", "step", "200"],
    ]


def test_another_model_continues_the_conversation(terminal: Terminal, read: Read) -> None:
    read("Hi")
    assert "step 200" in read("/model r-sft@200")[1]
    assert read("/regenerate")[0] == "older\n"
    read("/model r-mid")
    assert read("And you?")[0] == "mid\n"
    assert len(terminal.conversation.turns) == 4


def test_unknown_model_leaves_the_old_one(read: Read) -> None:
    out, err = read("/model r-rl")
    assert out == ""
    assert "no model 'r-rl'" in err
    assert read("Hi")[0] == "fresh\n"


def test_system_prompt_is_set_shown_and_removed(terminal: Terminal, read: Read) -> None:
    assert read("/system") == ("", "no system prompt\n")
    assert read("/system  Be kind. ") == ("", "Be kind.\n")
    assert terminal.conversation.system == "Be kind."
    assert read("/system none") == ("", "no system prompt\n")
    assert terminal.conversation.system == ""


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("temperature 1.5", {"temperature": 1.5}),
        ("top_k 5", {"top_k": 5}),
        ("top_k -1", {"top_k": None}),
        ("top_k none", {"top_k": None}),
        ("top_p 0.9", {"top_p": 0.9}),
        ("min_p 0.1", {"min_p": 0.1}),
        ("max_tokens 7", {"max_new_tokens": 7}),
        (f"seed {2**64 - 1}", {"seed": 2**64 - 1}),
    ],
)
def test_settings_change_what_the_engine_gets(
    terminal: Terminal, read: Read, typed: str, expected: dict[str, Any]
) -> None:
    name = typed.split()[0]
    assert name in read(f"/set {typed}")[1]
    assert {field: getattr(terminal.conversation.params, field) for field in expected} == expected
    assert terminal.conversation.params.temperature == expected.get("temperature", 0)


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("warmth 1", "no setting 'warmth'"),
        ("temperature hot", "temperature is 'hot'; expected a number"),
        ("temperature nan", "temperature is nan; expected"),
        ("temperature none", "temperature is none; expected a number"),
        ("temperature", "temperature is ''; expected a number"),
        ("top_k 1.5", "top_k is '1.5'; expected a whole number or none"),
        ("max_tokens 0", "max_tokens is 0; expected a whole number >= 1"),
        ("seed 99999999999999999999", "seed is 99999999999999999999; expected"),
    ],
)
def test_bad_setting_is_a_sentence_and_changes_nothing(
    terminal: Terminal, read: Read, typed: str, sentence: str
) -> None:
    before = terminal.conversation.params
    out, err = read(f"/set {typed}")
    assert out == ""
    assert err.startswith(sentence)
    assert terminal.conversation.params == before


def test_set_alone_shows_all_settings(read: Read) -> None:
    read("/set top_k 40")
    shown = dict(line.split()[:2] for line in read("/set")[1].splitlines())
    assert shown == {
        "temperature": "0",
        "top_k": "40",
        "top_p": "none",
        "min_p": "none",
        "max_tokens": "256",
        "seed": "none",
    }


@pytest.mark.parametrize("line", ["/regenerate", "/undo", "/save talk.jsonl"])
def test_empty_conversation_is_a_sentence(read: Read, line: str) -> None:
    assert read(line) == ("", "the conversation is empty; ask something first\n")


def test_undo_names_the_question(terminal: Terminal, read: Read) -> None:
    read("one")
    read("two")
    assert read("/undo") == ("", "took back: two\n")
    assert [turn["content"] for turn in terminal.conversation.turns[::2]] == ["one"]


def test_saved_conversations_can_be_trained_on(read: Read, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    read("Hi")
    read(f"/save {file}")
    read("Ho")
    assert "added" in read(f"/save {file}")[1]
    talks = [problem.messages for problem in file_problems(str(file), "messages", lambda row: Problem(row["messages"]))]
    assert [len(messages) for messages in talks] == [2, 4]
    assert TOKENIZER.decode(render(TOKENIZER, talks[1]).ids).count("fresh") == 2
    assert json.loads(file.read_text().splitlines()[0])["model"] == "r-sft"


@pytest.mark.parametrize(
    "line, sentence", [("/save", "needs the name"), ("/save /no/such/folder/x.jsonl", "No such file or directory")]
)
def test_file_that_cannot_be_written_is_a_sentence(read: Read, line: str, sentence: str) -> None:
    read("Hi")
    out, err = read(line)
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_quit_is_the_end_of_the_input(terminal: Terminal) -> None:
    with pytest.raises(EOFError):
        terminal.read("/quit")


def test_interrupt_and_empty_line_at_the_prompt_do_not_end_the_chat(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["", KeyboardInterrupt, "Hi", EOFError])

    def read_line(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read_line)
    terminal.talk()
    out, err = capsys.readouterr()
    assert out == "fresh\n"
    assert "Ctrl-D or /quit" in err


def test_interrupt_stops_the_answer_and_keeps_what_there_is(
    terminal: Terminal, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str, write: Any = sys.stdout.write) -> int:
        if text == "e":
            signal.raise_signal(signal.SIGINT)
        return write(text)

    outside = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdout, "write", write)
        terminal.read("Hi")
    assert signal.getsignal(signal.SIGINT) == outside
    assert terminal.text == "fre"
    assert terminal.conversation.turns[-1]["content"] == "fre"
    assert read("And?")[0] == "fre\nfresh\n"


def test_full_context_is_a_sentence_and_new_starts_again(read: Read) -> None:
    read("x" * 50)
    assert "expected 1 to 100" in read("y" * 50)[1]
    read("/new")
    assert read("y" * 50)[0] == "fresh\n"


@pytest.mark.parametrize(
    "line, words",
    [
        ("/s", ["/system", "/set", "/save"]),
        ("/set t", ["temperature", "top_k", "top_p"]),
        ("/model r-sft", ["r-sft", "r-sft@200"]),
        ("/new ", []),
        ("Tell me /s", []),
    ],
)
def test_completions(terminal: Terminal, line: str, words: list[str]) -> None:
    assert terminal.completions(line) == words

"""The chat in a terminal: the commands, and answers as they are generated.

Answers go to stdout. Everything else goes to stderr, so that a pipe gets answers alone.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.runs import Found, checkpoint_named, every_checkpoint
from raychat.serve.conversation import Answer, Conversation
from raychat.serve.line_editing import line_editing
from raychat.serve.sampling_settings import SETTINGS, changed, typed


class Terminal:
    """Talk with the checkpoints of a storage, one at a time. `text` is what the latest answer showed."""

    def __init__(self, storage: str, model: Found, params: SamplingParams) -> None:
        self.text = ""
        self.model = model
        self.conversation = Conversation(Engine.load(model.path, max_sequences=1), params)
        self._storage = storage

    def talk(self) -> None:
        """Read questions and commands from stdin to its end."""
        interactive = sys.stdin.isatty()
        if interactive:
            _note(f"{self.model.id}, step {self.model.step}. /help lists the commands. Ctrl-C stops an answer.")
        with line_editing(self.completions) if interactive else contextlib.nullcontext():
            while True:
                try:
                    self.read(input("> " if interactive else ""))
                except EOFError:  # also raised by /quit
                    break
                except KeyboardInterrupt:
                    _note("\nCtrl-D or /quit ends the chat.")
        if interactive:
            _note("")  # the shell's prompt gets a line of its own

    def read(self, line: str) -> None:
        """Answer a question, or obey a command; say what is wrong with it. Raises EOFError at /quit."""
        try:
            if line.startswith("/"):
                name, argument = _divide(line)
                if name not in COMMANDS:
                    raise ValueError(f"no command {name}; /help lists them, and a question may begin with a space")
                COMMANDS[name].run(self, argument)
            elif question := line.strip():
                self.show(self.conversation.ask(question))
        except (ValueError, OSError, FloatingPointError) as error:
            _note(str(error))

    def show(self, answer: Answer) -> None:
        """Print an answer while it is generated, up to Ctrl-C."""
        self.text = ""
        with _interrupt() as interrupted, contextlib.closing(answer):
            for piece in answer:
                print(piece, end="", flush=True)
                self.text += piece
                if interrupted.is_set():
                    break
        print(flush=True)
        if sys.stdout.isatty():
            _note(self._summary())

    def completions(self, line: str) -> list[str]:
        """Return what the last word of a line that is being typed may become."""
        *before, word = line.split(" ")
        match before:
            case []:
                words = list(COMMANDS)
            case ["/set"]:
                words = list(SETTINGS)
            case ["/model"]:
                words = [found.id for found in every_checkpoint(self._storage)]
            case _:
                words = []
        return [w for w in words if w.startswith(word)]

    def _summary(self) -> str:
        """Describe the latest answer: its tokens, their speed, and how full the context is."""
        if (stats := self.conversation.stats) is None:
            return ""
        end = {"length": "cut off at max_tokens or the context", None: "stopped"}.get(stats.finish)
        speed = f"{stats.tokens_per_s:.1f} tok/s" if stats.tokens_per_s else None
        used = f"{stats.prompt_tokens + stats.tokens} of {self.conversation.engine.context} tokens of context"
        tokens = f"{stats.tokens} token{'s' if stats.tokens != 1 else ''}"
        facts = (end, tokens, speed, f"first after {stats.first_s:.2f} s", used)
        return f"[{', '.join(fact for fact in facts if fact)}]\n"

    def _help(self, argument: str) -> None:
        for name, command in COMMANDS.items():
            _note(f"  {name + ' ' + command.argument:20} {command.help}")

    def _new(self, argument: str) -> None:
        self.conversation.turns = []

    def _model(self, argument: str) -> None:
        if not argument:
            for found in every_checkpoint(self._storage):
                _note(f"{'*' if found.path == self.model.path else ' '} {found.id:24} step {found.step}")
            return
        if (chosen := checkpoint_named(self._storage, argument)) is None:
            raise ValueError(f"no model {argument!r}; /model lists them")
        self.conversation.engine = Engine.load(chosen.path, max_sequences=1)
        self.model = chosen
        _note(f"{chosen.id}, step {chosen.step}, answers from now on")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = "" if argument == "none" else argument
        _note(self.conversation.system or "no system prompt")

    def _set(self, argument: str) -> None:
        if argument:
            name, value = _divide(argument)
            self.conversation.params = changed(self.conversation.params, name, typed(name, value))
            shown = [name]
        else:
            shown = list(SETTINGS)
        for name in shown:
            value = getattr(self.conversation.params, SETTINGS[name].field)
            _note(f"  {name:12} {'none' if value is None else value!s:8} {SETTINGS[name].help}")

    def _regenerate(self, argument: str) -> None:
        self.show(self.conversation.regenerate())

    def _undo(self, argument: str) -> None:
        _note(f"took back: {self.conversation.undo()}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save needs the name of a file")
        line = self.conversation.as_json(self.model.id)
        with open(os.path.expanduser(argument), "a", encoding="utf-8") as file:
            file.write(line + "\n")
        _note(f"added the conversation to {argument}")

    def _quit(self, argument: str) -> None:
        raise EOFError


class Command(NamedTuple):
    """What a line that begins with / does."""

    argument: str  # as /help shows it
    help: str
    run: Callable[[Terminal, str], None]


COMMANDS = {
    "/help": Command("", "list the commands", Terminal._help),
    "/new": Command("", "begin a new conversation; model, system prompt and settings stay", Terminal._new),
    "/model": Command("[id]", "let another model or saved step answer; alone: list them", Terminal._model),
    "/system": Command("[text|none]", "set the system prompt; alone: show it", Terminal._system),
    "/set": Command("[name value]", "change how tokens are sampled; alone: list the settings", Terminal._set),
    "/regenerate": Command("", "answer the last question again", Terminal._regenerate),
    "/undo": Command("", "take back the last question and its answer", Terminal._undo),
    "/save": Command("file", "add the conversation to a file of JSON lines, as SFT reads them", Terminal._save),
    "/quit": Command("", "end the chat", Terminal._quit),
}


def _divide(line: str) -> tuple[str, str]:
    """Return the first word of a line, and the rest of it."""
    word, *rest = line.split(maxsplit=1)
    return word, "".join(rest).strip()


@contextlib.contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets within the block. An exception might stop the engine in the middle of a step."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Talking to a trained model: find its checkpoint, and turn what it generates into text while it is being generated.

In text a tool call and its answer are written as GSM8K writes them, `<<48/2=24>>`, and a call without answer
`<<48/2>>`. `content_of` reads that notation back, so that an earlier answer sent along with the next question is to the
model what it was when it gave it.
"""

import codecs
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from fsspec.core import url_to_fs

from raychat import checkpoint, paths
from raychat.chat import Part
from raychat.tokenizer import Tokenizer

CHAT_STAGES = ("rl", "sft", "mid")  # that end in a model one can talk to, the latest first

_CALL = re.compile(r"<<([^<>\n]*?)(?:=([^<>=\n]*))?>>")


class Found(NamedTuple):
    """A checkpoint of a chat model."""

    run: str
    stage: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"


def find_checkpoint(storage: str, run: str | None = None, stage: str | None = None) -> Found:
    """Return the newest checkpoint to talk to.

    storage: root of everything that was written. run: None = the run that wrote a chat checkpoint last. stage: one of
    CHAT_STAGES, None = the latest that the run has reached.

    Raises:
        ValueError: there is no such checkpoint; says what there is, and how to make one.
    """
    if stage is not None and stage not in CHAT_STAGES:
        raise ValueError(f"stage is {stage!r}; expected one of {', '.join(CHAT_STAGES)}")
    found = [f for r in paths.names(paths.join(storage, "runs")) if (f := _newest(storage, r, stage))]
    wanted = [f for f in found if run in (None, f.run)]
    if not wanted:
        which = f"of the stage {stage}" if stage else f"of the stages {', '.join(CHAT_STAGES)}"
        others = f"; runs that have one: {', '.join(f.run for f in found)}" if found else ""
        raise ValueError(
            f"no checkpoint {which} in {paths.join(storage, 'runs', run or '*')}{others}. Train one first "
            "(make speedrun-tiny), or point RAYCHAT_HOME or the storage path at where it was written"
        )
    return max(wanted, key=lambda f: written(f.path)) if len(wanted) > 1 else wanted[0]


def _newest(storage: str, run: str, stage: str | None) -> Found | None:
    for s in (stage,) if stage else CHAT_STAGES:
        if path := checkpoint.latest(paths.join(storage, "runs", run, s)):
            return Found(run, s, path)
    return None


def written(path: str) -> datetime:
    """Return when a checkpoint was completed."""
    fs, p = url_to_fs(paths.join(path, paths.LAST_FILE))
    when: datetime = fs.modified(p)
    return when


def content_of(text: str) -> str | list[Part]:
    """Return an assistant's message with its tool calls as parts; see the top of this file.

    >>> content_of("That is <<48/2=24>>24.")[1:3]
    [{'type': 'python', 'text': '48/2'}, {'type': 'python_output', 'text': '24'}]
    """
    parts: list[Part] = []
    at = 0
    for call in _CALL.finditer(text):
        if call.start() > at:
            parts.append({"type": "text", "text": text[at : call.start()]})
        parts.append({"type": "python", "text": call[1]})
        if call[2] is not None:
            parts.append({"type": "python_output", "text": call[2]})
        at = call.end()
    if not parts:
        return text
    return [*parts, {"type": "text", "text": text[at:]}] if at < len(text) else parts


class TextStream:
    """Turn generated tokens into text piece by piece: no piece ends inside a character or inside a stop string.

    stop: strings that end the answer; they and what follows them are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._names = {token: name for name, token in tokenizer.special.items()}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._inside = "text"  # text | call | called (closed, maybe answered next) | answer
        self._stop = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False  # a stop string came

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain now, often none."""
        name = self._names.get(token)
        if name is None:
            return self._emit(self._leave_call() + self._decoder.decode(self._tokenizer.decode_bytes([token])))
        return self._emit(self._end_characters() + self._tool(name))

    def close(self) -> str:
        """Return the rest of the text, when no more tokens come."""
        text = self._emit(self._end_characters() + ("" if self._inside == "text" else ">>"))
        held, self._held, self._inside = self._held, "", "text"
        return text if self.stopped else text + held

    def _end_characters(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _leave_call(self) -> str:
        """End a call that was not answered, as text goes on."""
        if self._inside != "called":
            return ""
        self._inside = "text"
        return ">>"

    def _tool(self, name: str) -> str:
        match name, self._inside:
            case "<|python_start|>", "text" | "called":
                text = self._leave_call() + "<<"
                self._inside = "call"
            case "<|python_end|>", "call":
                text, self._inside = "", "called"
            case "<|output_start|>", "called":
                text, self._inside = "=", "answer"
            case "<|output_end|>", "answer":
                text, self._inside = ">>", "text"
            case _:  # out of place, or the end of the turn
                text = ""
        return text

    def _emit(self, text: str) -> str:
        """Return what may be shown of the text so far, holding back what may become a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        hold = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

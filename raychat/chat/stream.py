"""Turn generated tokens into text while they are generated; tool calls appear in the notation of `notation.py`."""

from collections.abc import Sequence

from raychat.chat import notation
from raychat.chat.parts import PartReader
from raychat.tokenizer import Tokenizer


class TextStream:
    """Turn generated tokens into text that ends neither inside a character nor inside a stop string.

    Args:
        stop: strings that end the answer; the text ends before the first one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False  # a stop string came
        self.length = 0  # of the text so far in characters, what is held back included
        self.parts = [(0, "text")]  # where each part of the text begins, and its type; a call begins with its "<<"
        self._reader = PartReader(tokenizer)
        self._stop = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain now, often none."""
        before = self._reader.type
        text, begun = self._reader.push(token)
        self._write(before, text)
        if begun == "python":
            self._end_call()
            self._begin("python")
            self._add(notation.START)
        elif begun == "python_output" and self._in_call:
            self._begin("python_output")
            self._add(notation.RESULT)
        elif before == "python_output" and begun == "text":
            self._end_call()
        return self._emit()

    def close(self) -> str:
        """Return the rest of the text, when no more tokens come."""
        self._write(self._reader.type, self._reader.close())
        self._end_call()
        text = self._emit()
        held, self._held = self._held, ""
        return text + held

    @property
    def _in_call(self) -> bool:
        """The text holds a call that is not closed yet."""
        return self.parts[-1][1] != "text"

    def _write(self, part_type: str, text: str) -> None:
        """Add what a part adds to the text; text after a call without a result closes the call."""
        if text and part_type == "text":
            self._end_call()
        self._add(text)

    def _end_call(self) -> None:
        if self._in_call:
            self._add(notation.END)
            self._begin("text")

    def _begin(self, part_type: str) -> None:
        self.parts.append((self.length, part_type))

    def _add(self, text: str) -> None:
        self._held += text
        self.length += len(text)

    def _emit(self) -> str:
        """Return what is certain of the text so far, and hold back what may become a stop string."""
        text, self._held = self._held, ""
        if self.stopped:
            return ""
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        hold = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

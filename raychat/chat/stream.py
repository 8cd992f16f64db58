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
        self._reader = PartReader(tokenizer)
        self._in_call = False  # the text holds a call that is not closed yet
        self._stop = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take the next token; return the text that is certain now, often none."""
        before = self._reader.type
        text, begun = self._reader.push(token)
        text = self._written(before, text)
        if begun == "python":
            text += self._end_call() + notation.START
            self._in_call = True
        elif begun == "python_output" and self._in_call:
            text += notation.RESULT
        elif before == "python_output" and begun == "text":
            text += self._end_call()
        return self._emit(text)

    def close(self) -> str:
        """Return the rest of the text, when no more tokens come."""
        text = self._emit(self._written(self._reader.type, self._reader.close()) + self._end_call())
        held, self._held = self._held, ""
        return text + held

    def _written(self, part_type: str, text: str) -> str:
        """Return what a part adds to the text; text after a call without a result closes the call."""
        return self._end_call() + text if text and part_type == "text" else text

    def _end_call(self) -> str:
        ended, self._in_call = self._in_call, False
        return notation.END if ended else ""

    def _emit(self, text: str) -> str:
        """Return what is certain of the text so far, and hold back what may become a stop string."""
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

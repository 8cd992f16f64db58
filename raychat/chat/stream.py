"""Turn what a model generates into text while it is being generated.

Tool calls are written in the notation of `raychat.chat.template.notation`.
"""

import codecs
from collections.abc import Sequence

from raychat.tokenizer import Tokenizer


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

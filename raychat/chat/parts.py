"""The parts of an assistant's turn: text, tool calls and tool outputs, divided by special tokens."""

import codecs

from raychat.tokenizer import Tokenizer

Part = dict[str, str]  # {"type": "text" | "python" | "python_output", "text": ...}

# type of part: the special tokens around it, whether its tokens carry loss
FENCES = {
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


class PartReader:
    """Read the parts of a turn token by token, and never return text that ends inside a character.

    Special tokens that are out of place are left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.type = "text"  # of the part being read
        self._tokenizer = tokenizer
        self._special = set(tokenizer.special.values())
        self._next: dict[tuple[str, int], str] = {}
        for name, (start, end, _) in FENCES.items():
            if start in tokenizer.special:  # a model of texts has none
                self._next |= {("text", tokenizer.special[start]): name, (name, tokenizer.special[end]): "text"}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def begins(self, token: int) -> bool:
        """Tell whether another part begins with the token."""
        return (self.type, token) in self._next

    def push(self, token: int) -> tuple[str, str | None]:
        """Return what the token adds to the part being read, and the type of the part that it begins, if it does."""
        if token not in self._special:
            return self._decoder.decode(self._tokenizer.decode_bytes([token])), None
        if (begun := self._next.get((self.type, token))) is None:
            return "", None
        self.type = begun
        return self.close(), begun

    def close(self) -> str:
        """Return the rest of the part being read: U+FFFD for a character that was cut off."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

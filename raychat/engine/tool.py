"""Tool calls in the middle of an answer."""

from collections import deque
from collections.abc import Callable

from raychat.chat.parts import FENCES, PartReader
from raychat.tokenizer import Tokenizer

Tool = Callable[[str], str | None]  # from the text of a call to the text of its answer; None = no answer


class ToolUse:
    """Follow one request's tokens, and run the tool when they close a call.

    `forced` holds the tokens of the tool's answer that are still to be put into the sequence in place of sampled ones.
    """

    def __init__(self, tokenizer: Tokenizer, tool: Tool) -> None:
        self.forced: deque[int] = deque()
        self._tokenizer, self._tool = tokenizer, tool
        self._reader = PartReader(tokenizer)
        self._call = ""  # text of the call being written

    def push(self, token: int) -> None:
        """Take the request's next token, sampled or forced."""
        if self.forced:
            self.forced.popleft()
        in_call = self._reader.type == "python"
        if not in_call and not self._reader.begins(token):
            return  # nobody reads the text of other parts here
        text, begun = self._reader.push(token)
        if in_call:
            self._call += text
            if begun is not None:
                self._run()

    def _run(self) -> None:
        answer = self._tool(self._call)
        self._call = ""
        if answer is not None:
            start, end = (self._tokenizer.special[name] for name in FENCES["python_output"][:2])
            self.forced.extend([start, *self._tokenizer.encode(answer), end])

"""Tool calls in text, as GSM8K writes them: `<<48/2=24>>`, or `<<48/2>>` for a call without a result.

The terminal and the API show an answer in this notation; `content_of` reads it back when the answer returns as part of
a conversation, so that the model sees the tokens that it generated.
"""

import itertools
import re

from raychat.chat.parts import FENCES, Part

START, RESULT, END = "<<", "=", ">>"
_CALL = re.compile(r"<<([^<>\n]*?)(?:=([^<>=\n]*))?>>")


def written_call(expression: str, result: str) -> str:
    """Return a tool call and its result as text.

    >>> written_call("48/2", "24")
    '<<48/2=24>>'
    """
    return START + expression + RESULT + result + END


def content_of(text: str) -> str | list[Part]:
    """Return the content of an assistant's message, tool calls as parts; a text without calls stays a string.

    >>> content_of("That is <<48/2=24>>24.")[1:3]
    [{'type': 'python', 'text': '48/2'}, {'type': 'python_output', 'text': '24'}]
    """
    found = _CALL.split(text)  # text, call, result (None = without), text, ...
    parts = zip(itertools.cycle(("text", *FENCES)), found, strict=False)
    kept = [{"type": kind, "text": t} for kind, t in parts if t or (kind != "text" and t is not None)]
    return text if len(found) == 1 else kept

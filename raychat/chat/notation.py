"""Tool calls in text, as GSM8K writes them: `<<48/2=24>>`, and a call without an answer `<<48/2>>`.

`content_of` reads that notation back, so that an earlier answer sent along with the next question is to the
model what it was when it gave it.
"""

import re

from raychat.chat.template import Part

_CALL = re.compile(r"<<([^<>\n]*?)(?:=([^<>=\n]*))?>>")


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

"""Conversations as tokens: the one place that knows how a chat is written for the model.

    <|bos|> (<|user_start|> text <|user_end|> <|assistant_start|> parts <|assistant_end|>)*

A message is {"role": "system" | "user" | "assistant", "content": ...}. An assistant's content is a string or a list of
parts {"type": "text" | "python" | "python_output", "text": str}: what it says, the tool calls it makes and what the
tool answered. A leading system message is joined to the first user message with a blank line.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from raychat.tokenizer import Tokenizer

Message = dict[str, Any]
Part = dict[str, str]

# type of part: the special tokens around it, whether its tokens carry loss
FENCES = {
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


class Rendered(NamedTuple):
    """A conversation as tokens; `mask[i]` is 1 where token i carries loss when it is a target."""

    ids: list[int]
    mask: list[int]


def text_of(content: str | Sequence[Part]) -> str:
    """Return what the assistant says in a content, tool calls and tool outputs left out.

    >>> text_of([{"type": "python", "text": "3+4"}, {"type": "text", "text": "It is 7."}])
    'It is 7.'
    """
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def normalise(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation in its one canonical form: alternating user and assistant messages.

    The system message is joined to the first user message, neighbouring text parts are joined, empty ones dropped, and
    content that is one text part becomes a string. `parse` returns this form.

    Raises:
        ValueError: no messages, a wrong type or role, roles out of order, or a message that says nothing.
    """
    if isinstance(messages, (str, bytes, dict)) or not isinstance(messages, Sequence):
        raise ValueError(f"a conversation is a list of messages, got {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f"message {index} should be a dict with 'role' and 'content', got {message!r:.200}")
    messages = _join_system(messages)
    if not messages:
        raise ValueError("the conversation is empty; it needs at least one user message")
    return [_normalise_message(index, message) for index, message in enumerate(messages)]


def _join_system(messages: Sequence[Message]) -> list[Message]:
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise ValueError("a system message must be followed by a user message, which it is joined to")
    system, user = messages[0]["content"], messages[1]["content"]
    if not isinstance(system, str) or not isinstance(user, str):
        raise ValueError("the content of system and user messages should be a string")
    return [{"role": "user", "content": f"{system}\n\n{user}" if system else user}, *messages[2:]]


def _normalise_message(index: int, message: Message) -> Message:
    role, content = message["role"], message["content"]
    expected = "assistant" if index % 2 else "user"
    if role != expected:
        raise ValueError(
            f"message {index} (after joining a leading system message) has role {role!r}, expected {expected!r}: "
            "user and assistant take turns, the user first"
        )
    if role == "assistant" and isinstance(content, (list, tuple)):
        content = _join_text(index, content)
    elif not isinstance(content, str):
        allowed = "a string or a list of parts" if role == "assistant" else "a string"
        raise ValueError(f"message {index} ({role}) has content of type {type(content).__name__}, expected {allowed}")
    if not content:
        raise ValueError(f"message {index} ({role}) is empty")
    return {"role": role, "content": content}


def _join_text(index: int, parts: Sequence[Part]) -> str | list[Part]:
    joined: list[Part] = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(
                f"message {index}: a part should be a dict with 'type' and a string 'text', got {part!r:.200}"
            )
        kind = part.get("type")
        if kind != "text" and kind not in FENCES:
            raise ValueError(f"message {index}: part type {kind!r}, expected 'text', 'python' or 'python_output'")
        if kind == "text" and not part["text"]:
            continue
        if kind == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append({"type": kind, "text": part["text"]})
    return _simplest(joined)


def _simplest(parts: list[Part]) -> str | list[Part]:
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """Return a whole conversation as tokens, with loss on what the assistant writes.

    Loss falls on the assistant's text, its tool calls with their fences, and <|assistant_end|>; none on user text,
    tool output or <|assistant_start|>.

    Raises:
        ValueError: the conversation is malformed (see `normalise`) or does not end with the assistant.
    """
    messages = normalise(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            "a conversation to train on should end with an assistant message; use render_prompt for a prompt"
        )
    return _render(tokenizer, messages)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the tokens after which the assistant's answer begins: the conversation and <|assistant_start|>.

    Raises:
        ValueError: the conversation is malformed (see `normalise`) or does not end with the user.
    """
    messages = normalise(messages)
    if messages[-1]["role"] != "user":
        raise ValueError("a prompt should end with a user message, for the assistant to answer")
    return [*_render(tokenizer, messages).ids, tokenizer.special["<|assistant_start|>"]]


def _render(tokenizer: Tokenizer, messages: Iterable[Message]) -> Rendered:
    special = tokenizer.special
    ids, mask = [tokenizer.bos], [0]

    def add(tokens: list[int], loss: int) -> None:
        ids.extend(tokens)
        mask.extend([loss] * len(tokens))

    for message in messages:
        role, content = message["role"], message["content"]
        add([special[f"<|{role}_start|>"]], 0)
        if role == "user":
            add(tokenizer.encode(content), 0)
            add([special["<|user_end|>"]], 0)
            continue
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                add(tokenizer.encode(part["text"]), 1)
            else:
                start, end, loss = FENCES[part["type"]]
                add([special[start], *tokenizer.encode(part["text"]), special[end]], loss)
        add([special["<|assistant_end|>"]], 1)
    return Rendered(ids, mask)


def parse(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Message]:
    """Return the messages that `render` turned into `ids`: its exact inverse, up to `normalise`.

    Raises:
        ValueError: `ids` is not a whole rendered conversation.
    """
    names = _special_names(tokenizer)
    if not ids or names.get(ids[0]) != "<|bos|>":
        raise ValueError("a rendered conversation begins with <|bos|>")
    messages: list[Message] = []
    at = 1
    while at < len(ids):
        role = "assistant" if len(messages) % 2 else "user"
        if names.get(ids[at]) != f"<|{role}_start|>":
            raise ValueError(f"token {at}: expected <|{role}_start|>, got {names.get(ids[at], 'text')}")
        end = tokenizer.special[f"<|{role}_end|>"]
        stop = next((i for i in range(at + 1, len(ids)) if ids[i] == end), None)
        if stop is None:
            raise ValueError(f"token {at}: <|{role}_start|> is never closed by <|{role}_end|>")
        content = _simplest(_parts(tokenizer, ids[at + 1 : stop], strict=True))
        if role == "user" and not isinstance(content, str):
            raise ValueError(f"token {at}: a user message holds tool tokens")
        messages.append({"role": role, "content": content})
        at = stop + 1
    return messages


def completion_parts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Part]:
    """Return the parts of an assistant's turn from the tokens a model generated after <|assistant_start|>.

    Made for what models do, so it never raises: reading stops at the first token that ends a turn, a tool call that was
    cut off is returned as far as it goes, and tool tokens out of place are left out.
    """
    enders = {i for i, name in _special_names(tokenizer).items() if name not in _fence_names()}
    stop = next((i for i, token in enumerate(ids) if token in enders), len(ids))
    return _parts(tokenizer, ids[:stop], strict=False)


def completion_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return what the assistant says in generated tokens, tool calls and outputs left out; see `completion_parts`."""
    return text_of(completion_parts(tokenizer, ids))


def _parts(tokenizer: Tokenizer, ids: Sequence[int], *, strict: bool) -> list[Part]:
    """Split the tokens inside one turn at the tool fences; `strict` raises where they do not pair up."""
    opens = {tokenizer.special[start]: kind for kind, (start, _, _) in FENCES.items()}
    closes = {tokenizer.special[end]: kind for kind, (_, end, _) in FENCES.items()}
    names = _special_names(tokenizer)
    parts: list[Part] = []
    kind = "text"  # of the part being read
    pending: list[int] = []  # its tokens

    def flush() -> None:
        if not pending and kind == "text":
            return
        text = tokenizer.decode(pending)
        if kind == "text" and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += text
        else:
            parts.append({"type": kind, "text": text})

    for token in ids:
        if token in opens and kind == "text":
            flush()
            kind, pending = opens[token], []
        elif token in closes and kind == closes[token]:
            flush()
            kind, pending = "text", []
        elif token not in names:
            pending.append(token)
        elif strict:
            raise ValueError(f"{names[token]} is out of place")
    if strict and kind != "text":
        raise ValueError(f"{FENCES[kind][0]} is never closed by {FENCES[kind][1]}")
    flush()
    return parts


def _special_names(tokenizer: Tokenizer) -> dict[int, str]:
    return {token: name for name, token in tokenizer.special.items()}


def _fence_names() -> set[str]:
    return {name for start, end, _ in FENCES.values() for name in (start, end)}

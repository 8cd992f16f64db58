"""Conversations as tokens: the chat format of the model.

    <|bos|> (<|user_start|> text <|user_end|> <|assistant_start|> parts <|assistant_end|>)*

A message is {"role": "system" | "user" | "assistant", "content": ...}. An assistant's content is a string or a list of
parts {"type": "text" | "python" | "python_output", "text": str}: its text, its tool calls and the tool's outputs. A
leading system message is joined to the first user message with a blank line.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from raychat.chat.parts import FENCES, Part, PartReader
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer

Message = dict[str, Any]


class Rendered(NamedTuple):
    """A conversation as tokens; `mask[i]` is 1 where token i carries loss when it is a target."""

    ids: list[int]
    mask: list[int]


def normalise(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation in canonical form: alternating user and assistant messages.

    It joins the system message to the first user message, joins neighbouring text parts, drops empty ones, and turns
    content of one text part into a string. `parse` returns this form.

    Raises:
        ValueError: no messages, a wrong type or role, roles out of order, or an empty message.
    """
    if isinstance(messages, (str, bytes, dict)) or not isinstance(messages, Sequence):
        raise ValueError(f"a conversation is a list of messages, got {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f"message {index} should be a dict with 'role' and 'content', got {message!r:.200}")
    messages = _join_system(messages)
    if not messages:
        raise ValueError("the conversation is empty; expected at least one user message")
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
            expected = "a dict with 'type' and a string 'text'"
            raise ValueError(f"message {index}: a part should be {expected}, got {part!r:.200}")
        kind = part.get("type")
        if kind != "text" and kind not in FENCES:
            raise ValueError(f"message {index}: part type {kind!r}, expected 'text', 'python' or 'python_output'")
        if kind == "text" and joined and joined[-1]["type"] == "text":
            joined[-1]["text"] += part["text"]
        elif kind != "text" or part["text"]:
            joined.append({"type": kind, "text": part["text"]})
    return _simplest(joined)


def _simplest(parts: list[Part]) -> str | list[Part]:
    return "".join(part["text"] for part in parts) if all(part["type"] == "text" for part in parts) else parts


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """Return a whole conversation as tokens; those that the assistant writes carry loss.

    These are its text, its tool calls with their fences, and <|assistant_end|>, but not a tool's output.

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
    if missing := [name for name in SPECIAL_TOKENS if name not in special]:
        raise ValueError(
            f"the tokenizer has no {missing[0]}, so its model cannot chat; expected the special tokens of "
            "conversations. It can continue texts: /v1/completions"
        )
    ids, mask = [tokenizer.bos], [0]

    def add(tokens: list[int], loss: int) -> None:
        ids.extend(tokens)
        mask.extend([loss] * len(tokens))

    for message in messages:
        role, content = message["role"], message["content"]
        writes = int(role == "assistant")
        add([special[f"<|{role}_start|>"]], 0)
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            tokens, loss = tokenizer.encode(part["text"]), writes
            if part["type"] in FENCES:
                start, end, loss = FENCES[part["type"]]
                tokens = [special[start], *tokens, special[end]]
            add(tokens, loss)
        add([special[f"<|{role}_end|>"]], writes)
    return Rendered(ids, mask)


def parse(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Message]:
    """Return the messages that `render` turned into `ids`: its exact inverse, up to `normalise`.

    Raises:
        ValueError: `ids` is not a whole rendered conversation.
    """
    roles = {tokenizer.special[f"<|{role}_start|>"]: role for role in ("user", "assistant")}
    messages = [
        {"role": roles[token], "content": _simplest(completion_parts(tokenizer, ids[at + 1 :]))}
        for at, token in enumerate(ids)
        if token in roles
    ]
    if render(tokenizer, messages).ids != list(ids):
        raise ValueError("these tokens are not a whole rendered conversation")
    return messages


def completion_parts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Part]:
    """Return the parts of an assistant's turn from the tokens that follow <|assistant_start|>.

    It accepts whatever a model generates: it stops at the first token that ends a turn, keeps what there is of a tool
    call that was cut off, and leaves out tool tokens that are out of place.
    """
    fences = {name for start, end, _ in FENCES.values() for name in (start, end)}
    ends = {i for name, i in tokenizer.special.items() if name not in fences}
    reader = PartReader(tokenizer)
    parts = [{"type": "text", "text": ""}]
    for token in ids:
        if token in ends:
            break
        text, begun = reader.push(token)
        parts[-1]["text"] += text
        if begun is not None:
            parts.append({"type": begun, "text": ""})
    parts[-1]["text"] += reader.close()
    return [part for part in parts if part["text"] or part["type"] != "text"]


def completion_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return what the assistant says in generated tokens, without tool calls and outputs; see `completion_parts`."""
    return "".join(part["text"] for part in completion_parts(tokenizer, ids) if part["type"] == "text")

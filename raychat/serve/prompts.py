"""From the messages and prompts of requests to the tokens that the engine continues."""

from collections.abc import Sequence

from raychat.chat.notation import content_of
from raychat.chat.template import Message, render_prompt
from raychat.serve.types import ChatMessage, CompletionRequest
from raychat.tokenizer import Tokenizer


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Return the tokens after which the assistant's answer begins.

    System messages are joined, with blank lines, to the user message that follows them. An assistant's empty message
    is read as the model generated it: a turn without text.

    Raises:
        ValueError: the roles are out of order, or a user message is empty.
    """
    ids: list[int] = []
    for part in _between_empty_answers(messages):
        prompt = render_prompt(tokenizer, part)
        ids += [tokenizer.special["<|assistant_end|>"], *prompt[1:]] if ids else prompt
    return ids


def _between_empty_answers(messages: Sequence[ChatMessage]) -> list[list[Message]]:
    """Return the conversation for `raychat.chat`, divided where the assistant said nothing."""
    parts: list[list[Message]] = [[]]
    system: list[str] = []  # messages that wait for the user message after them
    for message in messages:
        text = message.text
        if message.role in ("system", "developer"):
            system += [text] if text else []
        elif message.role == "user":
            parts[-1].append({"role": "user", "content": "\n\n".join([*system, text])})
            system = []
        elif text:  # tool calls in an earlier answer become parts again
            parts[-1].append({"role": "assistant", "content": content_of(text)})
        else:
            parts.append([])
    if system:
        raise ValueError("a system message must be followed by a user message, which it is joined to")
    return parts


def completion_prompts(tokenizer: Tokenizer, request: CompletionRequest) -> list[list[int]]:
    """Return the prompts of a completion request as tokens."""
    return [
        text_prompt(tokenizer, prompt, request.add_special_tokens) if isinstance(prompt, str) else prompt
        for prompt in request.prompts
    ]


def text_prompt(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """Return a text as tokens, after <|bos|> if wanted."""
    return [*([tokenizer.bos] if add_special_tokens else []), *tokenizer.encode(text)]

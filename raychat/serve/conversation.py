"""A conversation with one engine in this process: ask, ask again, take back."""

import json
import time
from collections.abc import Generator
from typing import NamedTuple

from raychat.chat.stream import TextStream
from raychat.chat.template import Message, completion_parts, normalise, render_prompt
from raychat.engine.engine import Engine
from raychat.engine.request import Finish
from raychat.engine.sampling import SamplingParams

Answer = Generator[str, None, None]  # text of an answer while it is generated; closing it stops the answer


class AnswerStats(NamedTuple):
    """What the latest answer took."""

    prompt_tokens: int  # the conversation before it
    tokens: int  # of the answer, tool calls and stop token included
    first_s: float  # from the question to the first token
    later_s: float  # from the first token to the last
    finish: Finish | None  # None = stopped by the user

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one, or None when there are none."""
        return (self.tokens - 1) / self.later_s if self.tokens > 1 and self.later_s > 0 else None


class Conversation:
    """Questions and answers so far, and the model that answers the next one.

    The attributes may change between two answers: another engine answers the same conversation.
    """

    def __init__(self, engine: Engine, params: SamplingParams, system: str = "") -> None:
        self.engine, self.params, self.system = engine, params, system
        self.turns: list[Message] = []  # user and assistant by turns
        self.stats: AnswerStats | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation as the chat template takes it, the system prompt first."""
        return [*self._system(), *self.turns]

    def ask(self, question: str) -> Answer:
        """Yield the answer's text, a piece for every step of the engine (it may be empty).

        The question and what was answered enter the conversation at the end. A question without an answer does not.

        Raises:
            ValueError: the conversation is longer than the model's context.
            FloatingPointError: the model's weights are broken.
        """
        return self._answer(self.turns, question)

    def regenerate(self) -> Answer:
        """Answer the last question again; the old answer stays until there is a new one. See `ask`."""
        *before, question, _ = self._begun()
        return self._answer(before, question["content"])

    def undo(self) -> str:
        """Take back the last question with its answer; return the question. Raises ValueError when there is none."""
        *self.turns, question, _ = self._begun()
        return str(question["content"])

    def as_json(self, model: str) -> str:
        """Return the conversation as JSON in the layout of SFT's files. Raises ValueError when there is none."""
        self._begun()
        return json.dumps({"messages": self.messages, "model": model}, ensure_ascii=False)

    def _begun(self) -> list[Message]:
        if not self.turns:
            raise ValueError("the conversation is empty; ask something first")
        return self.turns

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _answer(self, before: list[Message], question: str) -> Answer:
        engine, start = self.engine, time.perf_counter()
        turns = [*before, {"role": "user", "content": question}]
        prompt = render_prompt(engine.tokenizer, [*self._system(), *turns])
        request = engine.add(prompt, self.params)
        ids: list[int] = []
        text, finish = TextStream(engine.tokenizer), None
        first = last = start
        try:
            while finish is None:
                piece = ""
                for event in engine.step():
                    ids.append(event.token)
                    piece += text.push(event.token)
                    finish, last = event.finish, time.perf_counter()
                    first = last if len(ids) == 1 else first
                yield piece
            yield text.close()
        finally:
            engine.cancel(request)
            self.stats = AnswerStats(len(prompt), len(ids), first - start, last - first, finish)
            if content := completion_parts(engine.tokenizer, ids):
                self.turns = normalise([*turns, {"role": "assistant", "content": content}])

"""One model that answers chat requests: conversation in, pieces of text out. It knows neither HTTP nor Ray."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from raychat import checkpoint
from raychat.chat.notation import content_of
from raychat.chat.stream import TextStream
from raychat.chat.template import Message, render_prompt
from raychat.device import device
from raychat.engine.engine import Engine, Finish
from raychat.engine.sampling import SamplingParams
from raychat.runs import Found, written
from raychat.serve.loop import EngineLoop
from raychat.serve.types import ChatRequest, Failure, ModelCard, Piece, no_such_model

FLUSH_S = 0.03  # tokens that come within this time travel together: a message between processes costs more than a token


def card_of(found: Found) -> ModelCard:
    """Return how a checkpoint is presented in the API. Raises ValueError where it is none."""
    context = checkpoint.read_meta(found.path).recipe.sequence_len
    return ModelCard(id=found.name, created=int(written(found.path).timestamp()), max_model_len=context)


class ChatService:
    """Answer chat requests with one engine. card: what the model is called and can do, in the API's words."""

    def __init__(self, engine: Engine, card: ModelCard) -> None:
        self.card = card
        self._engine = engine
        self._loop = EngineLoop(engine)

    @classmethod
    def load(cls, path: str, card: ModelCard, max_sequences: int) -> "ChatService":
        """Serve the checkpoint at `path`. Raises ValueError where there is none."""
        model, _ = checkpoint.load_model(path, device())
        return cls(Engine(model.eval(), checkpoint.load_tokenizer(path), max_sequences=max_sequences), card)

    async def check(self) -> None:
        """Raise RuntimeError when the engine has failed, which it does not recover from."""
        if self._loop.error is not None:
            raise RuntimeError(f"the engine has failed: {self._loop.error!r}")

    def close(self) -> None:
        """End the engine's thread."""
        self._loop.close()

    @property
    def num_open(self) -> int:
        """Requests that are being answered."""
        return self._loop.num_open

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Piece | Failure, None]:
        """Yield the answer in pieces as it is generated; closing the iterator ends the generation.

        What is wrong with a request is a `Failure` in place of the first piece, not an exception, so that it crosses
        processes as it is.
        """
        try:
            prompt = self._prompt(request)
        except _Refused as e:
            yield e.failure
            return
        params = SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            max_new_tokens=request.max_completion_tokens or request.max_tokens or self._engine.context + 1,
            seed=request.seed,
        )
        try:
            async with contextlib.aclosing(self._pieces(prompt, params, request.stop)) as pieces:
                async for piece in pieces:
                    yield piece
        except RuntimeError as e:
            yield Failure(500, str(e))

    def _prompt(self, request: ChatRequest) -> list[int]:
        if request.model not in (None, "raychat", self.card.id):
            raise _Refused(no_such_model(request.model, self.card))
        try:
            prompt = render_prompt(self._engine.tokenizer, [_as_message(m.role, m.text) for m in request.messages])
        except ValueError as e:
            raise _Refused(Failure(400, str(e), "messages")) from e
        if len(prompt) > self._engine.context:
            message = f"the conversation has {len(prompt)} tokens; expected at most {self._engine.context}, the context"
            raise _Refused(Failure(400, message, "messages", "context_length_exceeded"))
        return prompt

    async def _pieces(
        self, prompt: list[int], params: SamplingParams, stop: Sequence[str]
    ) -> AsyncGenerator[Piece, None]:
        text = TextStream(self._engine.tokenizer, stop)
        async with contextlib.aclosing(self._loop.events(prompt, params)) as batches:
            async for events in batches:
                new, count = "", 0
                finish: Finish | None = None
                for event in events:
                    new += text.push(event.token)
                    count += 1
                    finish = "stop" if text.stopped else event.finish
                    if finish:
                        break
                yield Piece(new + (text.close() if finish else ""), count, len(prompt), finish)
                if finish:
                    return
                await asyncio.sleep(FLUSH_S)


class _Refused(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _as_message(role: str, text: str) -> Message:
    """Return a message as raychat.chat takes it: tool calls in an earlier answer become parts again."""
    return {
        "role": "system" if role == "developer" else role,
        "content": content_of(text) if role == "assistant" else text,
    }

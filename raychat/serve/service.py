"""One model that answers chat requests: conversation in, text out. It knows neither HTTP nor Ray."""

import asyncio
from collections.abc import AsyncGenerator

from raychat import checkpoint
from raychat.chat.stream import TextStream
from raychat.chat.template import render_prompt
from raychat.engine.engine import Engine
from raychat.engine.request import Finish
from raychat.engine.sampling import SamplingParams
from raychat.runs import Found, written
from raychat.serve.loop import EngineLoop
from raychat.serve.types import ChatRequest, Delta, Failure, ModelCard, no_such_model

FLUSH_S = 0.03  # tokens of this time travel together: a message between processes costs more than a token


def card_of(found: Found) -> ModelCard:
    """Return how the API presents a checkpoint."""
    context = checkpoint.read_meta(found.path).recipe.sequence_len
    return ModelCard(id=found.name, created=int(written(found.path).timestamp()), max_model_len=context)


class ChatService:
    """Answer chat requests with one engine. card: how the API presents the model."""

    def __init__(self, engine: Engine, card: ModelCard) -> None:
        self.card = card
        self._engine = engine
        self._loop = EngineLoop(engine)

    @classmethod
    def load(cls, path: str, card: ModelCard, max_sequences: int) -> "ChatService":
        """Load the checkpoint at `path`."""
        return cls(Engine.load(path, max_sequences), card)

    async def check(self) -> None:
        """Raise RuntimeError when the engine has failed; it does not recover."""
        if self._loop.error is not None:
            raise RuntimeError(f"the engine has failed: {self._loop.error!r}")

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta | Failure, None]:
        """Yield the answer as the engine generates it; closing the iterator cancels the request in the engine.

        A wrong request yields one `Failure` instead of raising, so that it crosses processes unchanged.
        """
        prompt = self._prompt(request)
        if isinstance(prompt, Failure):
            yield prompt
            return
        params = SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            max_new_tokens=request.max_completion_tokens or request.max_tokens or self._engine.context + 1,
            seed=request.seed,
        )
        text, count = TextStream(self._engine.tokenizer, request.stop), 0
        finish: Finish | None = None
        events = self._loop.add(prompt, params)
        try:
            while True:
                new = ""
                for event in await events.take():
                    new += text.push(event.token)
                    count += 1
                    finish = "stop" if text.stopped else event.finish
                    if finish:
                        new += text.close()
                        break
                yield Delta(new, len(prompt), count, finish)
                if finish:
                    return
                await asyncio.sleep(FLUSH_S)
        except RuntimeError as e:
            yield Failure(500, str(e))
        finally:
            self._loop.cancel(events)

    def _prompt(self, request: ChatRequest) -> list[int] | Failure:
        if request.model not in (None, "raychat", self.card.id):
            return no_such_model(request.model, self.card)
        try:
            prompt = render_prompt(self._engine.tokenizer, [message.for_template() for message in request.messages])
        except ValueError as e:
            return Failure(400, str(e), "messages")
        if len(prompt) > self._engine.context:
            message = f"the conversation has {len(prompt)} tokens; expected at most {self._engine.context}, the context"
            return Failure(400, message, "messages", "context_length_exceeded")
        return prompt

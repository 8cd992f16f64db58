"""One model that answers requests: conversation or prompt in, text out. It knows neither HTTP nor Ray."""

import asyncio
from collections.abc import AsyncGenerator

from raychat import checkpoint
from raychat.engine.engine import Engine
from raychat.engine.request import EngineStats
from raychat.runs import Found, written
from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer, no_such_model
from raychat.serve.choices import Choice
from raychat.serve.loop import EngineLoop
from raychat.serve.metrics import engine_metrics
from raychat.serve.plan import choices_of
from raychat.serve.prompts import chat_prompt, text_prompt
from raychat.serve.types import (
    DEFAULT_NAMES,
    ChatRequest,
    CompletionRequest,
    Delta,
    DetokenizeRequest,
    Failure,
    TokenizeRequest,
)

FLUSH_S = 0.03  # tokens of this time travel together, at least: a message costs more than a token
MESSAGES_PER_S = 300.0  # of all streams together; when there are many, more tokens travel in each message


def card_of(found: Found) -> ModelCard:
    """Return how the API presents a checkpoint."""
    meta = checkpoint.read_meta(found.path)
    return ModelCard(
        id=found.id,
        created=int(written(found.path).timestamp()),
        root=found.path,
        max_model_len=meta.recipe.sequence_len,
        run=found.run,
        stage=found.stage,
        step=found.step,
        latest=found.latest,
    )


class ChatService:
    """Answer requests with one engine. card: how the API presents the model."""

    def __init__(self, engine: Engine, card: ModelCard) -> None:
        self.card = card
        self._engine = engine
        self._loop = EngineLoop(engine)
        self._num_streams = 0

    @classmethod
    def load(cls, path: str, card: ModelCard, max_sequences: int) -> "ChatService":
        """Load the checkpoint at `path`."""
        return cls(Engine.load(path, max_sequences), card)

    async def cards(self) -> list[ModelCard]:
        """Return the one model that is served."""
        return [self.card]

    async def check(self) -> None:
        """Raise RuntimeError when the engine has failed; it does not recover."""
        if self._loop.error is not None:
            raise RuntimeError(self._loop.error)

    def close(self) -> None:
        """End the engine, so that its memory is freed; there must be no requests."""
        self._loop.close()

    async def stats(self) -> EngineStats:
        """Return what the engine does now and has done."""
        return await self._loop.stats()

    async def metrics(self) -> str:
        """Return the engine's statistics as Prometheus reads them."""
        return engine_metrics([({"model": self.card.id}, await self.stats())])

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Delta | Failure, None]:
        """Yield the answer as the engine generates it; closing the iterator cancels the request in the engine.

        A wrong request yields one `Failure` instead of raising, so that it crosses processes unchanged.
        """
        if not self._is_me(request.model):
            yield no_such_model(str(request.model), [self.card])
            return
        # In a thread: a long prompt takes a while to become tokens.
        choices = await asyncio.to_thread(choices_of, request, self._engine.tokenizer, self._engine.context)
        if isinstance(choices, Failure):
            yield choices
            return
        events = self._loop.add([choice.work for choice in choices])
        self._num_streams += 1
        try:
            while True:
                changed: dict[int, Choice] = {}
                for index, event in await events.take():
                    if not choices[index].done:  # else the event was on its way when a stop string came
                        changed[index] = choices[index]
                        choices[index].push(event)
                for index, choice in changed.items():
                    if choice.done:
                        self._loop.cancel(events, index)  # after a stop string the engine would go on
                    for delta in choice.deltas():
                        yield delta
                if all(choice.done for choice in choices):
                    return
                await events.gather(max(FLUSH_S, self._num_streams / MESSAGES_PER_S))
        except ValueError as e:
            yield Failure(400, str(e))
        except RuntimeError as e:
            yield Failure(500, str(e))
        finally:
            self._num_streams -= 1
            self._loop.cancel(events)

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        """Return a prompt or a conversation as token ids."""
        if not self._is_me(request.model):
            return no_such_model(str(request.model), [self.card])
        return await asyncio.to_thread(self._tokenize, request)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        """Return token ids as text; a special token gives its name."""
        if not self._is_me(request.model):
            return no_such_model(str(request.model), [self.card])
        try:
            return DetokenizeAnswer(prompt=self._engine.tokenizer.decode(request.tokens))
        except ValueError as e:
            return Failure(400, str(e), "tokens")

    def _is_me(self, name: str | None) -> bool:
        return name in DEFAULT_NAMES or name in (self.card.id, f"{self.card.id}@{self.card.step}")

    def _tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        tokenizer = self._engine.tokenizer
        if request.messages is None:
            ids = self._prompt_ids(request.prompt or "", request.add_special_tokens)
        else:
            try:
                ids = chat_prompt(tokenizer, request.messages)
            except ValueError as e:
                return Failure(400, str(e), "messages")
            ids = ids if request.add_generation_prompt else ids[:-1]
        strings = [tokenizer.decode([id]) for id in ids] if request.return_token_strs else None
        return TokenizeAnswer(count=len(ids), max_model_len=self._engine.context, tokens=ids, token_strs=strings)

    def _prompt_ids(self, prompt: str, add_special_tokens: bool) -> list[int]:
        """Return a prompt as token ids. The name of a special token alone is that token: lm-eval asks for its id."""
        special = self._engine.tokenizer.special
        if prompt in special and not add_special_tokens:
            return [special[prompt]]
        return text_prompt(self._engine.tokenizer, prompt, add_special_tokens)

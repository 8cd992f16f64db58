"""All checkpoints of a storage behind one backend: what a request's `model` means, and which weights answer it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from raychat.engine.request import EngineStats
from raychat.runs import Found
from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer
from raychat.serve.catalog import Catalog, Offer
from raychat.serve.metrics import engine_metrics
from raychat.serve.pool import ModelPool, NotServed, PooledModel
from raychat.serve.service import ChatService, card_of
from raychat.serve.types import ChatRequest, CompletionRequest, Delta, DetokenizeRequest, Failure, TokenizeRequest

NEWER_TIMEOUT_S = 2.0  # that a request waits for newer weights before the older ones answer it

log = logging.getLogger(__name__)
T = TypeVar("T")
AnyRequest = TypeVar("AnyRequest", ChatRequest | CompletionRequest, TokenizeRequest, DetokenizeRequest)


def open_models(storage: str, default: str, run: str | None, max_sequences: int, max_loaded: int) -> "Models":
    """Return the models of a storage, or of a run there; see `Catalog` and `Models`. max_sequences: of each engine."""

    def load(found: Found) -> ChatService:
        return ChatService.load(found.path, card_of(found), max_sequences)

    return Models(Catalog(storage, default, run), load, max_loaded)


class Models:
    """Answer requests to any checkpoint of a catalog.

    A newer checkpoint of a stage takes the older one's place: running requests finish on the old weights. New requests
    get the old weights, too, while the new ones take longer than `NEWER_TIMEOUT_S` to load.

    Args:
        load: makes the service of a checkpoint; runs in a thread.
        max_loaded: models in memory, besides older checkpoints that finish their last requests.
    """

    def __init__(self, catalog: Catalog, load: Callable[[Found], ChatService], max_loaded: int = 2) -> None:
        self._catalog, self._pool = catalog, ModelPool(load, max_loaded)
        self._last: dict[str, PooledModel] = {}  # by id: the model that answered last
        self._failure: Exception | None = None  # of the engine that failed last
        self._broken: set[Offer] = set()  # newer checkpoints that could not be loaded

    async def cards(self) -> list[ModelCard]:
        """Return all models that can be asked for, the default first."""
        return await self._catalog.cards()

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Delta | Failure, None]:
        """Yield the answer of the request's model; closing the iterator cancels the request."""
        try:
            async with (
                self._using(request.model) as service,
                contextlib.aclosing(service.stream(_to_any(request))) as deltas,
            ):
                async for delta in deltas:
                    yield delta
        except NotServed as e:
            yield e.failure

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        """Return a prompt or a conversation as token ids."""
        return await self._once(request, ChatService.tokenize)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        """Return token ids as text."""
        return await self._once(request, ChatService.detokenize)

    async def stats(self) -> dict[str, EngineStats]:
        """Return the statistics of the engines in memory, by the model's id."""
        loaded = {model.offer.found.id: model.service for model in self._pool.models() if model.service}
        return {id: await service.stats() for id, service in loaded.items()}

    async def metrics(self) -> str:
        """Return the statistics as Prometheus reads them."""
        return engine_metrics([({"model": id}, stats) for id, stats in (await self.stats()).items()])

    async def check(self) -> None:
        """Raise RuntimeError when an engine has failed and no other one works."""
        errors = [await _error_of(model) for model in self._pool.models() if model.service]
        if (error := next(iter(errors), self._failure)) and all(errors):
            raise RuntimeError(str(error)) from error

    async def preload(self) -> None:
        """Load the default model. Raises ValueError when it cannot be loaded."""
        try:
            async with self._using(None):
                pass
        except NotServed as e:
            raise ValueError(e.failure.message) from e

    def loaded(self) -> list[str]:
        """Return the ids of the models in memory or on their way there."""
        return [model.offer.found.id for model in self._pool.models()]

    async def _once(
        self, request: AnyRequest, call: Callable[[ChatService, AnyRequest], Awaitable[T | Failure]]
    ) -> T | Failure:
        """Return what a call of the request's model returns."""
        try:
            async with self._using(request.model) as service:
                return await call(service, _to_any(request))
        except NotServed as e:
            return e.failure

    @contextlib.asynccontextmanager
    async def _using(self, name: str | None) -> AsyncIterator[ChatService]:
        """Yield the service that answers a request for a model; it stays in memory until the block ends.

        Raises:
            NotServed: there is no such model, no room for it, or it cannot be loaded.
        """
        model = await self._acquire(name)
        try:
            assert model.service is not None
            yield model.service
        finally:
            self._pool.release(model)

    async def _acquire(self, name: str | None) -> PooledModel:
        """Return the loaded model for a request, with one user more."""
        for last_attempt in (False, True):  # what was removed a moment ago is looked for again
            model = await self._choose(name)
            model.users += 1
            try:
                if model.service is None:
                    await asyncio.shield(model.loading)
                return model
            except BaseException as e:
                self._pool.release(model)
                if isinstance(e, NotServed) or not isinstance(e, Exception):
                    raise
                self._catalog.forget(name)
                if last_attempt:
                    message = f"the model {model.offer.found.id!r} cannot be loaded: {e}"
                    raise NotServed(Failure(503, message, "model")) from e
        raise AssertionError("the second attempt returns or raises")

    async def _choose(self, name: str | None) -> PooledModel:
        """Return the model for a request, in memory or on its way there. Raises NotServed when there is none."""
        offer = await self._catalog.find(name)
        if offer is None:
            raise NotServed(await self._catalog.unknown(name))
        for model in self._pool.models():
            if error := await _error_of(model):
                self._failure = error
                self._pool.retire(model)
        id = self._catalog.id(name)
        last = self._last.get(id)
        if last is None or last.offer == offer or last.service is None or last not in self._pool.models():
            model = self._pool.open(offer)
        else:
            model = await self._newer(offer, last)
        self._last[id] = model
        return model

    async def _newer(self, offer: Offer, older: PooledModel) -> PooledModel:
        """Return the model of a newer offer if it loads in time and without an error, else the older one."""
        if offer in self._broken:
            return older
        model = self._pool.open(offer, instead_of=older)
        await asyncio.wait([model.loading], timeout=NEWER_TIMEOUT_S)
        if model.service is not None or older.service is None:
            return model
        error = model.loading.exception() if model.loading.done() else None
        if error and not isinstance(error, NotServed):  # else there was no room
            log.warning("%s cannot be loaded, so the older checkpoint goes on: %s", offer.found.path, error)
            self._broken.add(offer)
        return older


async def _error_of(model: PooledModel) -> Exception | None:
    """Return why a model that was loaded cannot answer any more."""
    try:
        if model.service is not None:
            await model.service.check()
    except RuntimeError as e:
        return e
    return None


def _to_any(request: AnyRequest) -> AnyRequest:
    """Return the request to whichever model gets it: the choice has been made."""
    return request.model_copy(update={"model": None})

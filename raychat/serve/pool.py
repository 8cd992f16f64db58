"""Models in memory: loaded when first asked for, at most so many, the least recently used one unloaded for another."""

import asyncio
from collections.abc import Callable

from raychat.runs import Found
from raychat.serve.catalog import Offer
from raychat.serve.service import ChatService
from raychat.serve.types import Failure

ROOM_TIMEOUT_S = 0.5  # that a model waits for another one to become idle; then its requests are refused


class NotServed(Exception):
    """A request that no model can answer; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class PooledModel:
    """A model in memory, or on its way there. Whoever uses it counts in `users` and ends with `ModelPool.release`."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.users = 0
        self.service: ChatService | None = None  # None = not loaded yet, or unloaded
        self.loading: asyncio.Task[None]  # ends with the error when it cannot be loaded
        self.has_room = False


class ModelPool:
    """Hold at most `max_loaded` models. It belongs to one event loop; models load in threads.

    Args:
        load: makes the service of a checkpoint.

    Raises:
        ValueError: max_loaded is less than one.
    """

    def __init__(self, load: Callable[[Found], ChatService], max_loaded: int) -> None:
        if max_loaded < 1:
            raise ValueError(f"max_loaded is {max_loaded}; expected at least one model")
        self._load, self._max_loaded = load, max_loaded
        self._models: dict[Offer, PooledModel] = {}  # the least recently used first
        self._changed = asyncio.Event()  # set when there may be room

    def models(self) -> list[PooledModel]:
        """Return the models in memory or on their way there, without those that only finish their requests."""
        return list(self._models.values())

    def open(self, offer: Offer, instead_of: PooledModel | None = None) -> PooledModel:
        """Return the model of an offer, which starts to load when it is not there.

        Args:
            instead_of: an older model whose room the new one takes. It stays in memory until the new one is loaded and
                its own last request has ended.
        """
        model = self._models.pop(offer, None)
        if model is None:
            model = PooledModel(offer)
            model.loading = asyncio.create_task(self._fill(model, instead_of))
        self._models[offer] = model
        return model

    def release(self, model: PooledModel) -> None:
        """Count one user less. A retired model leaves the memory with its last user."""
        model.users -= 1
        if not model.users:
            self._changed.set()
            if self._models.get(model.offer) is not model:
                self._unload(model)

    def retire(self, model: PooledModel) -> asyncio.Future[None] | None:
        """Take a model out of the pool. Return the end of its unloading, None while requests use it."""
        if self._models.get(model.offer) is model:
            del self._models[model.offer]
        model.has_room = False
        self._changed.set()
        return None if model.users else self._unload(model)

    async def _fill(self, model: PooledModel, older: PooledModel | None) -> None:
        taken = older is not None and older.has_room
        try:
            if older is not None and taken:
                older.has_room = False
            else:
                await self._make_room()
            model.has_room = True
            model.service = await asyncio.to_thread(self._load, model.offer.found)
        except BaseException:
            if older is not None and taken:
                older.has_room = True
            self.retire(model)
            raise
        if older is not None:
            self.retire(older)
        self._changed.set()

    async def _make_room(self) -> None:
        """Unload idle models until there is room for one. Raises NotServed when all stay in use."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROOM_TIMEOUT_S
        while sum(model.has_room for model in self._models.values()) >= self._max_loaded:
            idle = (m for m in self._models.values() if m.has_room and not m.users and m.loading.done())
            if (model := next(idle, None)) is not None:
                await (self.retire(model) or asyncio.sleep(0))
                continue
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - loop.time())
            except TimeoutError:
                message = f"the {self._max_loaded} models that have room in memory are in use; try again in a moment"
                raise NotServed(Failure(429, message, "model")) from None

    def _unload(self, model: PooledModel) -> asyncio.Future[None]:
        service, model.service = model.service, None
        close = service.close if service is not None else lambda: None
        return asyncio.get_running_loop().run_in_executor(None, close)

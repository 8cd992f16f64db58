"""The checkpoints that a server offers, as its storage holds them now."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from raychat import paths
from raychat.runs import Found, checkpoint_named, every_checkpoint, written
from raychat.serve.answers import ModelCard, no_such_model
from raychat.serve.service import card_of
from raychat.serve.types import DEFAULT_NAMES, Failure

REFRESH_S = 2.0  # how old an answer about the storage may be
NUM_SUGGESTED = 4
_REMEMBERED = 1000  # ids: whoever asks for many that do not exist fills no memory

log = logging.getLogger(__name__)


class Offer(NamedTuple):
    """A checkpoint, and when it was written: a run that is trained anew writes other weights to the same path."""

    found: Found
    written: datetime


class Catalog:
    """What a storage, or one of its runs, offers. The storage is read in threads, at most every `REFRESH_S`.

    Args:
        default: the id that requests without a model get, such as `tiny-sft`.
        run: offer only this run's checkpoints; None = those of all runs.
    """

    def __init__(self, storage: str, default: str, run: str | None = None) -> None:
        self.default = default
        self._storage, self._run = storage, run
        self._answers: dict[str, tuple[float, Any]] = {}  # by id, "" = the cards: when it was read, and the answer

    async def cards(self) -> list[ModelCard]:
        """Return a card for every checkpoint that can be read, the default's first."""
        cards: list[ModelCard] = await self._recent("", self._read_cards)
        return cards

    async def find(self, name: str | None) -> Offer | None:
        """Return the checkpoint that a request's `model` means now; None where there is none."""
        id = self.id(name)
        offer: Offer | None = await self._recent(id, lambda: self._read(id))
        return offer

    def forget(self, name: str | None) -> None:
        """Read the storage at the next question about a model: what it said last is wrong."""
        self._answers.pop(self.id(name), None)

    async def unknown(self, name: str | None) -> Failure:
        """Return the error for a request to a model that is not there."""
        return no_such_model(self.id(name), await self.cards())

    def id(self, name: str | None) -> str:
        """Return the id that a request's `model` stands for."""
        return self.default if name in DEFAULT_NAMES else str(name)

    async def _recent(self, key: str, read: Callable[[], Any]) -> Any:
        """Return the answer of less than `REFRESH_S` ago, or a new one; the last known while the storage fails."""
        when, answer = self._answers.get(key, (-REFRESH_S, None))
        if time.monotonic() - when < REFRESH_S:
            return answer
        try:
            answer = await asyncio.to_thread(read)
        except OSError as e:
            if key not in self._answers:
                raise
            log.warning("the storage cannot be read, so %r stays what it was: %s", key or "the list of models", e)
        if len(self._answers) >= _REMEMBERED:
            self._answers.clear()
        self._answers[key] = time.monotonic(), answer
        return answer

    def _read(self, id: str) -> Offer | None:
        found = checkpoint_named(self._storage, id)
        if found is None or self._run not in (None, found.run):
            return None
        try:
            return Offer(found, written(found.path))
        except FileNotFoundError:  # removed a moment ago
            return None

    def _read_cards(self) -> list[ModelCard]:
        every = every_checkpoint(self._storage, self._run)
        ideas = {folder: suggestions(folder) for folder in {paths.parent(found.path) for found in every}}
        cards = [card for found in every if (card := _card(found, ideas[paths.parent(found.path)]))]
        return sorted(cards, key=lambda card: card.id != self.default)


def _card(found: Found, ideas: list[str]) -> ModelCard | None:
    """Return a checkpoint's card; None where it cannot be read, or was removed a moment ago."""
    try:
        return _card_of_version(found, written(found.path)).model_copy(update={"suggestions": ideas})
    except (OSError, ValueError) as e:
        log.warning("%s is not offered: %s", found.path, e)
        return None


def suggestions(stage_folder: str) -> list[str]:
    """Return the first questions that a stage's evaluation found its model to answer well; none before it."""
    path = paths.join(stage_folder, "eval.json")
    try:
        return _suggestions_of_version(path, paths.version(path)) if paths.exists(path) else []
    except (OSError, ValueError) as e:
        log.warning("%s suggests nothing: %s", path, e)
        return []


@lru_cache(maxsize=1000)
def _suggestions_of_version(path: str, version: str) -> list[str]:
    evaluation = paths.read_json(path)
    texts = [sample["prompt"] for sample in evaluation.get("samples", [])]  # what a base model has continued
    return list(evaluation.get("suggestions", texts[:NUM_SUGGESTED]))


@lru_cache(maxsize=10_000)
def _card_of_version(found: Found, when: datetime) -> ModelCard:
    return card_of(found)

"""Calls on objects that may be anywhere: the face that counting and evaluations need, and its form without Ray."""

from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Actors(Protocol):
    """Objects that make calls for this process; see raychat/cluster/map.py for those on Ray."""

    def map(self, call: Callable[[Any, Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield `call(held, item)` for each item in order, as soon as it and those before it have finished."""
        ...

    def close(self) -> None:
        """End the actors."""
        ...


class InProcess:
    """One object that this process holds, made when first called; it calls an item when its result is asked for."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build

    @cached_property
    def _held(self) -> Any:
        return self._build()

    def map(self, call: Callable[[Any, Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield `call(held, item)` for each item in order."""
        for item in items:
            yield call(self._held, item)

    def close(self) -> None:
        """Do nothing."""

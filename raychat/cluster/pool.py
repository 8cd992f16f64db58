"""Actors that hold one plain object each and do one call at a time; of one that dies, the call is done again."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

Item = TypeVar("Item")

_SAY_EVERY_S = 30.0  # without news
_DEATHS = (RayActorError, ObjectLostError, OutOfMemoryError)  # process or node ended, or a result was lost with it


class ActorPool:
    """Give calls to actors as they get free. Calls must be such that doing one again, elsewhere, changes nothing.

    A pool may be made in one process and used, after pickling, in another: the actors live as long as the one that made
    them, except those that replace dead ones, which live as long as the one that uses the pool.
    """

    def __init__(self, make: Callable[[], Any], num_actors: int, *, name: str, max_failures: int) -> None:
        """Start the actors without waiting for them.

        Args:
            make: starts an actor and returns its handle; picklable.
            name: what messages call the pool.
            max_failures: deaths after the last finished call before the pool gives up.
        """
        self._make, self._name, self._max_failures = make, name, max_failures
        self._starting = [make() for _ in range(num_actors)]
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}  # result to come: (actor, call's number; None = starts)

    def map(
        self, call: Callable[[Any, Item], Any], items: Sequence[Item], done: Callable[[int], None] = lambda n: None
    ) -> list[Any]:
        """Return what `call(actor, item)`, which returns a reference to the result, gives for each item, in order.

        `done` is told the number of finished calls. An exception raised inside a call is raised here.

        Raises:
            RuntimeError: actors keep dying.
        """
        results: dict[int, Any] = {}
        waiting = deque(range(len(items)))
        failures = 0
        while len(results) < len(items):
            self._watch_starting()
            while waiting and self._idle:
                actor, number = self._idle.pop(), waiting.popleft()
                self._running[call(actor, items[number])] = (actor, number)
            ready, _ = ray.wait(list(self._running), timeout=_SAY_EVERY_S)
            if not ready:
                self._say_what_is_awaited(len(results), len(items))
            for reference in ready:
                actor, started = self._running.pop(reference)
                try:
                    result = ray.get(reference)
                except _DEATHS as error:
                    failures += 1
                    self._replace(actor, error, failures)
                    if started is not None:
                        waiting.appendleft(started)
                    continue
                self._idle.append(actor)
                if started is not None:
                    results[started], failures = result, 0
                    done(len(results))
        return [results[number] for number in range(len(items))]

    def close(self) -> None:
        """End the actors that this process knows."""
        for actor in [*self._starting, *self._idle, *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)
        self._starting, self._idle, self._running = [], [], {}

    def _watch_starting(self) -> None:
        """Give no call to an actor before it is up: one that finds no room would hold the call for ever."""
        for actor in self._starting:
            self._running[actor.__ray_ready__.remote()] = (actor, None)
        self._starting = []

    def _replace(self, actor: Any, error: Exception, failures: int) -> None:
        ray.kill(actor)  # whatever is left of it: one that was only unreachable must not go on
        if failures > self._max_failures:
            raise RuntimeError(
                f"{self._name}: actors keep dying ({failures} in a row); the last one's end is above"
            ) from error
        print(f"{self._name}: an actor died and is replaced, its call is done again: {error}", flush=True)
        self._starting.append(self._make())

    def _say_what_is_awaited(self, done: int, total: int) -> None:
        starting = sum(number is None for _, number in self._running.values())
        print(
            f"{self._name}: {done} of {total} calls done; for {_SAY_EVERY_S:.0f} s no news from "
            f"{len(self._running) - starting} actors at work and {starting} that start or wait for room on the cluster",
            flush=True,
        )

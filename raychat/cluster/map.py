"""The one fan-out: calls spread over actors, results in order. Counting, evaluations and rollouts run on it."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from raychat.actors import Actors, InProcess, Item, Result
from raychat.cluster import Cluster

SILENCE_S = 30.0  # without any result, before a message says what is awaited
_CALLS_AHEAD = 16  # per actor: how far calls run ahead of the oldest unfinished one
DEATHS = (RayActorError, ObjectLostError, OutOfMemoryError)  # the process or node ended, or a result was lost with it


class FanOut:
    """Spread calls over actors that each hold one plain object (`raychat.actors.Actors`).

    Repeating a call on another actor must change nothing: when an actor dies, another one takes its place and its call.
    A fan-out can be pickled and used in another process. Its first actors live as long as the process that started
    them, replacements as long as the process that uses it.
    """

    def __init__(
        self, build: Callable[[], Any], num_actors: int, *, name: str, gpus: float = 0, max_failures: int
    ) -> None:
        """Start the actors without waiting for them.

        Args:
            build: makes the object; picklable, runs in the actor.
            name: what messages call the fan-out.
            max_failures: deaths in a row, without a finished call, before the fan-out gives up.
        """
        self._build, self.num_actors, self._name = build, num_actors, name
        self._gpus, self._max_failures = gpus, max_failures
        self._starting = [self._start() for _ in range(num_actors)]
        self.idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}  # reference: (actor, call; None = no result awaited)

    def map(self, call: Callable[[Any, Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield `call(held, item)` for each item in order, as soon as it and those before it have finished.

        After an error, or when the generator is closed early, no further calls start; `close` ends the running ones.

        Raises:
            RuntimeError: actors keep dying; the last death is its cause.
            Exception: whatever a call raises.
        """
        assert self._starting or self._running or self.idle, f"{self._name} is closed"
        shipped = ray.put(call)
        waiting, results, failures = deque(range(len(items))), dict[int, Result](), 0
        try:
            for head in range(len(items)):
                while True:
                    for actor, number, outcome in self.finished(0 if head in results else SILENCE_S):
                        if isinstance(outcome, DEATHS):
                            failures += 1
                            self.replace(actor, outcome, failures)
                            waiting.extendleft([] if number is None else [number])
                            continue
                        self.idle.append(actor)
                        if number is not None:
                            results[number], failures = outcome, 0
                    while self.idle and waiting and waiting[0] < head + _CALLS_AHEAD * self.num_actors:
                        actor, number = self.idle.pop(), waiting.popleft()
                        self.begin(actor, shipped, items[number], number)
                    if head in results:
                        break
                yield results.pop(head)
        finally:  # after an early end, nobody waits for the calls that still run
            self._running = {reference: (actor, None) for reference, (actor, _) in self._running.items()}

    def close(self) -> None:
        """End the actors that this process knows."""
        for actor in [*self._starting, *self.idle, *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)
        self._starting, self.idle, self._running = [], [], {}

    def _start(self) -> Any:
        return ray.remote(num_cpus=1, num_gpus=self._gpus)(_Holder).remote(self._build)

    def begin(self, actor: Any, call: Any, item: Any, number: int) -> None:
        """Let an idle actor make a call; `finished` will tell its number."""
        self._running[actor.call.remote(call, item)] = (actor, number)

    def finished(self, timeout_s: float) -> Generator[tuple[Any, int | None, Any], None, None]:
        """Yield (actor, call, result or death) of what has finished; wait for the first at most `timeout_s`."""
        # Queue calls only on ready actors: one still waiting for resources would hold its call forever.
        for actor in self._starting:
            self._running[actor.__ray_ready__.remote()] = (actor, None)
        self._starting = []
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), timeout=timeout_s)
        if not ready and timeout_s:
            starting = sum(number is None for _, number in self._running.values())
            awaited = f"{len(self._running) - starting} actors at work and {starting} that start or wait for room"
            print(f"{self._name}: no result for {timeout_s:.0f} s; waiting for {awaited} on the cluster", flush=True)
        for reference in ready:
            actor, number = self._running[reference]
            try:
                outcome = ray.get(reference)
            except DEATHS as death:
                outcome = death
            except Exception as error:
                if number is not None:
                    raise
                outcome = error  # of a call that nobody waits for
            del self._running[reference]
            yield actor, number, outcome

    def replace(self, actor: Any, death: Exception, failures: int) -> None:
        """Start another actor in place of a dead one. Raises RuntimeError after too many failures in a row."""
        ray.kill(actor)  # it may only be unreachable, and must stop then
        if failures > self._max_failures:
            raise RuntimeError(f"{self._name}: actors keep dying, {failures} in a row: {death}") from death
        print(f"{self._name}: an actor died and is replaced, its call is repeated: {death}", flush=True)
        self._starting.append(self._start())


class _Holder:
    """The actor: holds the object and makes the calls."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._held = build()

    def call(self, call: Callable[[Any, Any], Any], item: Any) -> Any:
        return call(self._held, item)


def actors_per_core(cluster: Cluster, num_calls: int, *, name: str) -> Actors:
    """Return actors that hold nothing, for calls of one thread: one for each core; with 0 workers this process."""
    if cluster.max_workers == 0:
        return InProcess(type(None))
    return FanOut(type(None), min(num_calls, num_cores(cluster)), name=name, max_failures=cluster.max_failures)


def actors_per_worker(cluster: Cluster, build: Callable[[], Any], num_calls: int, *, name: str) -> Actors:
    """Return actors that hold what `build` returns: one for each worker, with its GPUs and its share of the cores."""
    if cluster.max_workers == 0:
        return InProcess(build)
    cluster.connect()
    num_threads = max(1, (os.cpu_count() or 1) // cluster.max_workers)
    build, num_actors = partial(_with_threads, num_threads, build), min(cluster.max_workers, num_calls)
    return FanOut(build, num_actors, name=name, gpus=cluster.gpus(), max_failures=cluster.max_failures)


def _with_threads(num_threads: int, build: Callable[[], Any]) -> Any:
    import torch  # not by actors that count

    torch.set_num_threads(num_threads)
    return build()


def num_cores(cluster: Cluster) -> int:
    """Return how many calls of one thread the cluster computes at once.

    A cluster of one machine may have been told of more CPUs than it has.
    """
    cluster.connect()
    cpus = int(ray.cluster_resources().get("CPU", 1))
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return max(1, min(cpus, os.cpu_count() or 1) if alone else cpus - cluster.max_workers)

"""Rollouts on Ray actors, each holding one `Sampler`.

In step with the learner, results depend neither on the number of actors nor on who does what. Ahead of it, each actor
answers its questions in one continuous batch, slice by slice: between two slices it gets questions and weights.
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from raychat.cluster import Cluster, num_gpus
from raychat.cluster.map import DEATHS, SILENCE_S, FanOut
from raychat.evals.generate import Group, Question
from raychat.rl.queue import Answers
from raychat.rl.sampler import Sampler

_MAX_DEATHS = 8  # in a row, without one finished call
_SLICE_STEPS = 32  # engine steps after which an actor returns: what new weights and questions wait for at most


class RolloutPool:
    """Rollout actors as the learner's rank 0 sees them (`raychat.rl.Pool`)."""

    def __init__(
        self, build: Callable[[], Sampler], num_actors: int, *, gpus: int = 0, max_failures: int = _MAX_DEATHS
    ) -> None:
        """Start actors that hold what `build` returns; it is called in their processes."""
        build_policy = partial(_Policy, build)
        self.cores = 0 if gpus else num_actors
        self._actors = FanOut(build_policy, num_actors, name="rollouts", gpus=gpus, max_failures=max_failures)

    def rollouts(self, calls: Sequence[Sequence[Question]], weights: Mapping[str, Tensor]) -> list[list[Group]]:
        """Return for each call what `Sampler.rollout` returns with these weights.

        The object store gets the weights once. Every call carries the reference and a version; an actor that holds
        another version, such as a replacement, fetches them first.
        """
        published = _published(weights, uuid.uuid4().hex)
        return list(self._actors.map(partial(_Policy.rollout, published=published), calls))

    def stream(self) -> Answers:
        """Return the actors' streams as one."""
        return ActorStream(self._actors)

    def close(self) -> None:
        """End the actors."""
        self._actors.close()


class ActorStream:
    """Actors that answer ahead of the learner (`raychat.rl.queue.Answers`), driven by a thread of its process.

    The thread lives while there are open questions. The questions that a dead actor had begun are asked anew.
    """

    def __init__(self, actors: FanOut) -> None:
        self._actors, self._session = actors, uuid.uuid4().hex
        self._changed = threading.Condition()
        self._weights: _Published | None = None
        self._waiting: dict[int, Question] = {}
        self._held: dict[Any, dict[int, Question]] = {}  # actor -> the questions that it answers
        self._answered: dict[int, Group] = {}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the object store once; every actor fetches them with its next slice."""
        self._weights = _published(weights, version)

    def ask(self, questions: Mapping[int, Question]) -> None:
        """Take over questions, by their places."""
        with self._changed:
            self._waiting |= questions
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name="rollouts", daemon=True)
                self._thread.start()

    def finished(self) -> dict[int, Group]:
        """Wait until some question is answered; return all that are. Raises what an actor or its reward raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered or self._error)
            if self._error is not None:
                raise self._error
            answered, self._answered = self._answered, {}
        return answered

    def close(self) -> None:
        """Drop what is unfinished. Actors end what they have begun when they are next asked."""
        with self._changed:
            self._waiting, self._held, thread = {}, {}, self._thread
        if thread is not None:
            thread.join()

    def _drive(self) -> None:
        """Give actors slices of work until everything is answered."""
        failures, work = 0, ray.put(_Policy.work)
        try:
            while self._give(work):
                for actor, number, outcome in self._actors.finished(SILENCE_S):
                    if isinstance(outcome, DEATHS):
                        failures += 1
                        with self._changed:
                            self._waiting = self._held.pop(actor, {}) | self._waiting
                        self._actors.replace(actor, outcome, failures)
                        continue
                    self._actors.idle.append(actor)
                    if number is not None and self._take(actor, outcome):
                        failures = 0
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _give(self, work: Any) -> bool:
        """Let idle actors work on the questions they have and on new ones; tell whether there were any."""
        with self._changed:
            num_open = len(self._waiting) + sum(map(len, self._held.values()))
            if not num_open:
                self._thread = None
                return False
            assert self._weights is not None
            share = -(-num_open // self._actors.num_actors)
            for actor in list(self._actors.idle):
                held = self._held.setdefault(actor, {})
                asked = dict(islice(self._waiting.items(), max(0, share - len(held))))
                held |= asked
                self._waiting = {place: q for place, q in self._waiting.items() if place not in asked}
                if held:
                    self._actors.idle.remove(actor)
                    self._actors.begin(actor, work, _Slice(self._session, self._weights, asked), 0)
            return True

    def _take(self, actor: Any, groups: dict[int, Group]) -> int:
        """Take what an actor has answered; return the number of questions."""
        with self._changed:
            held = self._held.get(actor, {})  # empty after `close`
            mine = {place: group for place, group in groups.items() if held.pop(place, None)}
            self._answered |= mine
            self._changed.notify_all()
        return len(mine)


def num_actors(cluster: Cluster, wanted: int | None, num_calls: int, *, ahead: bool = False) -> int:
    """Choose the number of rollout actors; 0 = every train worker makes its share of the rollouts itself.

    None asks for as many as there are train workers, if these leave enough GPUs free; without GPUs, for one per core,
    less those that train meanwhile where rollouts run ahead. There are never more actors than calls in a step.
    """
    if cluster.max_workers == 0:
        return 0
    cluster.connect()
    if wanted is None:
        gpus = cluster.gpus()
        most, free = cluster.max_workers, num_gpus() - cluster.max_workers * gpus
        cores = os.cpu_count() or 1
        on_cpus = max(1, cores - most) if ahead else max(most, cores)
        wanted = min(most, max(0, free // gpus)) if gpus else on_cpus
    return min(wanted, num_calls)


@contextlib.contextmanager
def rollout_pool(build: Callable[[], Sampler], cluster: Cluster, count: int) -> Iterator[RolloutPool | None]:
    """Yield a pool of `count` actors and end it with the block; yield None for 0."""
    if count == 0:
        yield None
        return
    cluster.connect()
    with contextlib.closing(RolloutPool(build, count, gpus=cluster.gpus())) as pool:
        yield pool


class _Published(NamedTuple):
    """Weights in the object store."""

    version: int | str
    box: list[Any]  # holds the reference: in a list, so that Ray does not fetch it for every call


def _published(weights: Mapping[str, Tensor], version: int | str) -> _Published:
    """Put weights into the object store as arrays, which all readers on a node share.

    Where activations are in bf16 (embeddings have their dtype), matrices are read as bf16 and travel so; numpy, which
    has no bf16, sees 16-bit numbers.
    """
    halve = any(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    arrays = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().to(torch.bfloat16 if halve and tensor.dim() == 2 else tensor.dtype).cpu()
        arrays[name] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return _Published(version, [ray.put(arrays)])


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return what `_published` got. Copies: the arrays are read-only."""
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    return {name: t.view(torch.bfloat16) if t.dtype == torch.uint16 else t for name, t in tensors.items()}


class _Slice(NamedTuple):
    """What an actor gets to work on for a while."""

    session: str  # of the stream; another one's questions are dropped
    weights: _Published
    asked: dict[int, Question]  # new questions, by their places


class _Policy:
    """What an actor holds: a sampler, the version of its weights, and its stream."""

    def __init__(self, build: Callable[[], Sampler]) -> None:
        torch.set_num_threads(1)  # one actor per core, and the same sums for any number of actors
        self._sampler = build()
        self._stream, self._session = self._sampler.stream(), ""
        self._version: int | str | None = None

    def rollout(self, questions: Sequence[Question], published: _Published) -> list[Group]:
        if published.version != self._version:
            self._sampler.load_weights(_tensors(ray.get(published.box[0])))
            self._version = published.version
        return self._sampler.rollout(questions)

    def work(self, slice: _Slice) -> dict[int, Group]:
        """Answer for some steps of the engine; return the questions that are answered."""
        if slice.session != self._session:
            self._stream.close()
            self._session, self._version = slice.session, None
        if (version := slice.weights.version) != self._version:
            self._stream.publish(int(version), _tensors(ray.get(slice.weights.box[0])))
            self._version = version
        self._stream.ask(slice.asked)
        return self._stream.finished(_SLICE_STEPS)

"""The board between driver and train workers: the stage to train, and the events that the driver has yet to see.

Its process starts without torch.
"""

import asyncio
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raychat.train.stop import Stopped


class StageEvent(NamedTuple):
    """What rank 0 tells the driver: a row of metrics, or the summary of a finished stage."""

    row: dict[str, Any]
    finished: bool = False


class Board:
    """An actor's object. Workers ask again after a restart, so a stage stays on the board until it is finished."""

    def __init__(self) -> None:
        self._number, self._stage, self._open = 0, list[Any](), True
        self._taken = self._pausing = self._stopping = False
        self._changed = asyncio.Condition()
        self._events = asyncio.Queue[StageEvent | Stopped | None]()

    async def post(self, stage: list[Any]) -> None:
        """Put up the next stage: a list with its reference."""
        async with self._changed:
            self._number, self._stage, self._taken = self._number + 1, stage, False
            self._changed.notify_all()

    async def next_stage(self, after: int) -> tuple[int, list[Any]] | None:
        """Wait for a stage that is not finished and has a number above `after`; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ends() or (self._stage and self._number > after))
            if self._ends():
                return None
            self._taken = True
            return self._number, self._stage

    def _ends(self) -> bool:
        return self._stopping or not self._open

    async def stop(self) -> bool:
        """Let the running stage stop, and begin no other; tell whether workers have taken it."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()
        return self._taken

    async def pause(self) -> None:
        """Let the workers save a checkpoint after the running step and end; return when they have, or have no stage.

        The stage stays on the board for the workers that are started next.
        """
        async with self._changed:
            self._pausing = self._taken
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._pausing)

    async def lost(self) -> None:
        """The workers have died."""
        await self._give_back()

    async def _give_back(self) -> None:
        async with self._changed:
            self._taken = self._pausing = False
            self._changed.notify_all()

    async def stopping(self, number: int) -> None:
        """Wait until the stage of this number should stop, or is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ends() or self._pausing or self._number > number)

    async def report(self, row: dict[str, Any]) -> None:
        await self._events.put(StageEvent(row))

    async def finish(self, end: dict[str, Any] | Stopped) -> None:
        """Pass on a stage's summary, or where it stopped; take a finished stage down."""
        if not isinstance(end, Stopped):
            self._stage = []
        await self._give_back()
        await self._events.put(end if isinstance(end, Stopped) else StageEvent(end, finished=True))

    async def next_event(self) -> StageEvent | Stopped | None:
        """Wait for an event; None at the end."""
        return await self._events.get()

    async def end(self) -> None:
        async with self._changed:
            self._open = False
            self._changed.notify_all()
        await self._events.put(None)


def start_board() -> Any:
    """Start a board on the driver's node, which lives as long as the job does, unlike a spot node; return its actor."""
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=on_this_node).remote()

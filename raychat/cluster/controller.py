"""What raychat adds to Ray Train's controller: checkpoints before workers are replaced, an end to waiting for room."""

import time
from typing import Any

import ray
from ray.exceptions import RayError

_PAUSE_S = 300.0  # for a step, an evaluation and a checkpoint; workers that take longer are replaced without
_SAY_EVERY_S = 30.0


def on_state(board: Any, what: str, max_wait_s: float) -> Any:
    """Return a callback of Ray Train's controller.

    Before the number of workers changes, it has them save a checkpoint and end; also when one of their nodes will be
    taken away. While there is no room for workers, it says so.

    Args:
        what: the workers and their needs, for messages.
        max_wait_s: without room for them, before the callback raises ValueError.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    room = Room(what, max_wait_s)

    class OnState(ControllerCallback):
        """Ray calls it at every step of the controller, also where the state stays the same."""

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            was, now = type(previous_state).__name__, type(current_state).__name__
            if now == "ResizingState":
                _pause(board)
            elif now == "PreemptingState" and was != now:
                board.pause.remote()  # the controller sees when the workers have ended
            elif now == "RestartingState" and was != now:
                board.lost.remote()
            if now == "RunningState":
                room.found()
            elif now in ("InitializingState", "RestartingState", "ReschedulingState"):
                room.wait(time.monotonic())
                if previous_state is current_state:
                    time.sleep(0.5)  # an elastic group asks for room without a break

    return OnState()


def _pause(board: Any) -> None:
    try:
        ray.get(board.pause.remote(), timeout=_PAUSE_S)
    except RayError as error:  # it took too long, or the board has died; the last checkpoint stays
        print(f"workers are replaced without a new checkpoint: {error}", flush=True)


class Room:
    """The workers' wait for room on the cluster: said every 30 s, ended after `max_wait_s`."""

    def __init__(self, what: str, max_wait_s: float) -> None:
        self._what, self._max_wait_s = what, max_wait_s
        self._since: float | None = None
        self._said = 0.0

    def found(self) -> None:
        """Note that the workers have room."""
        self._since = None

    def wait(self, now: float) -> None:
        """Note that at the time `now` in seconds they have none. Raises ValueError where that lasts too long."""
        if self._since is None:
            self._since = self._said = now
        waited = now - self._since
        if waited < self._max_wait_s and now - self._said < _SAY_EVERY_S:
            return
        free = ray.available_resources()
        message = (
            f"no room for {waited:.0f} s for {self._what}; free now: {free.get('CPU', 0):g} CPUs and "
            f"{free.get('GPU', 0):g} GPUs"
        )
        if waited >= self._max_wait_s:
            raise ValueError(
                f"{message}; set --cluster.workers lower, --cluster.max-wait-s higher, or add nodes. Start the same "
                "command then: it continues"
            )
        self._said = now
        print(f"{message}; waiting", flush=True)

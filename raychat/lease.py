"""One driver on a stage: a lease on its folder, which a second one respects.

The holder rewrites `lease.json` every few seconds. Whether it still does is seen from two readings, so clocks need not
agree. A holder that was killed on this machine is known to be gone at once.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from raychat import paths

BEAT_S = 10.0  # between two signs of life
PATIENCE_S = 3 * BEAT_S  # without one, after which a holder on another machine counts as gone

_mine: set[Any] = set()  # ids of the leases that this process holds


@contextlib.contextmanager
def lease(folder: str) -> Iterator[None]:
    """Hold the lease on a folder while the block runs. Waits until an earlier holder is known to be gone.

    Raises:
        ValueError: somebody else holds it.
    """
    file = paths.join(folder, "lease.json")
    _wait_for_silence(folder, file)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _mine.add(holder["id"])
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.is_set():
            with contextlib.suppress(OSError):  # a storage that is away for a moment
                paths.write_json(file, {**holder, "beat": number})
            number += 1
            ended.wait(BEAT_S)

    paths.write_json(file, {**holder, "beat": -1})
    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        paths.remove(file)
        _mine.discard(holder["id"])


def _wait_for_silence(folder: str, file: str) -> None:
    """Return when nobody holds the lease; raise ValueError when somebody does."""
    first = _read(file)
    if first is None or _is_dead(first):
        return
    who = f"process {first['pid']} on {first['host']}"
    taken = f"{folder} is being trained by {who}; wait for it, stop it, or choose another --run"
    if first["host"] == socket.gethostname():
        raise ValueError(taken)
    print(f"waiting up to {PATIENCE_S:.0f} s to see whether {who} still trains {folder}", flush=True)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE_S / 10))
        now = _read(file)
        if now is None:
            return
        if now != first:
            raise ValueError(taken)


def _read(file: str) -> dict[str, Any] | None:
    try:
        found = paths.read_json(file)
    except (FileNotFoundError, ValueError):  # none, or one that is not ours
        return None
    return found if isinstance(found, dict) and {"host", "pid", "id"} <= found.keys() else None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether a holder was a process of this machine, and is none any more."""
    if holder["host"] != socket.gethostname():
        return False
    if holder["pid"] == os.getpid():  # in a container, which begins anew with the same number
        return holder["id"] not in _mine
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process, which lives
        pass
    return False

"""One driver on a stage: a lease on its folder, which a second one respects.

The holder creates `lease-000001.json` and rewrites it every few seconds. Whether it still does is seen from two
readings, so clocks need not agree. A holder that was killed on this machine is known to be gone at once. The next
holder creates the file with the next number, and removes older ones. The storage lets one of several drivers create a
file, and the newest file is never removed, so there are never two holders.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from raychat import paths

BEAT_S = 10.0  # between two signs of life
PATIENCE_S = 3 * BEAT_S  # without one, after which a holder on another machine counts as gone

_NAME = re.compile(r"lease-(\d{6,})\.json")
_mine: set[Any] = set()  # ids of the leases that this process holds


@contextlib.contextmanager
def lease(folder: str) -> Iterator[None]:
    """Hold the lease on a folder while the block runs. Waits until an earlier holder is known to be gone.

    Raises:
        ValueError: somebody else holds it.
    """
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _mine.add(holder["id"])
    try:
        with _beating(_take(folder, holder), holder):
            yield
    finally:
        _mine.discard(holder["id"])


def wait_until_free(folder: str, timeout_s: float) -> None:
    """Return when nobody holds the lease on a folder, after `timeout_s` at the latest.

    For actors: those of a driver that was killed live on for some seconds, and hold their leases.
    """
    began, said = time.monotonic(), False
    while (last := max(_numbers(folder), default=0)) and time.monotonic() < began + timeout_s:
        try:
            _wait_for_silence(folder, last)
            return
        except ValueError as error:
            if not said:
                print(f"waiting up to {timeout_s:.0f} s: {error}", flush=True)
            said = True
            time.sleep(1.0)


@contextlib.contextmanager
def _beating(file: str, holder: dict[str, Any]) -> Iterator[None]:
    """Write signs of life to a lease while the block runs, and its end."""
    ended = threading.Event()

    def write(**news: Any) -> None:
        with contextlib.suppress(Exception):  # a storage that is away for a moment
            paths.write_json(file, holder | news)

    def beat() -> None:
        number = 0
        while not ended.wait(BEAT_S):
            write(beat=number)
            number += 1

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        write(ended=True)


def _take(folder: str, holder: dict[str, Any]) -> str:
    """Create the file of a new lease and return it. Raises ValueError where somebody holds the one before."""
    last = max(_numbers(folder), default=0)
    if last:
        _wait_for_silence(folder, last)
    number = last + 1
    created = paths.create(_file(folder, number), json.dumps(holder).encode())
    if not created or max(_numbers(folder), default=0) > number:  # another driver was faster
        raise ValueError(_taken(folder, _read(_file(folder, max(_numbers(folder), default=number)))))
    for old in _numbers(folder):
        if old < number:
            paths.remove(_file(folder, old))
    return _file(folder, number)


def _wait_for_silence(folder: str, number: int) -> None:
    """Return when nobody holds the lease of this number; raise ValueError when somebody does."""
    first = _read(_file(folder, number))
    if "ended" in first or _is_dead(first):
        return
    if first.get("host") == socket.gethostname():
        raise ValueError(_taken(folder, first))
    print(f"waiting up to {PATIENCE_S:.0f} s to see whether {_who(first)} still trains {folder}", flush=True)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE_S / 10))
        now = _read(_file(folder, number))
        if "ended" in now:
            return
        if now != first:
            raise ValueError(_taken(folder, now))


def _numbers(folder: str) -> list[int]:
    return [int(found[1]) for name in paths.names(folder) if (found := _NAME.fullmatch(name))]


def _file(folder: str, number: int) -> str:
    return paths.join(folder, f"lease-{number:06d}.json")


def _read(file: str) -> dict[str, Any]:
    """Return what a holder says of itself; empty where the file was removed, or is not written to its end yet."""
    try:
        found = paths.read_json(file)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _taken(folder: str, holder: dict[str, Any]) -> str:
    return f"{folder} is being trained by {_who(holder)}; wait for it, stop it, or choose another --run"


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether a holder was a process of this machine, and is none any more."""
    if holder.get("host") != socket.gethostname():
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

"""How a stage is asked to stop, by a signal or by its caller, and how the process ends then."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

# Tells whether training should stop at the end of the running step. One worker that says so is enough.
Stop = Callable[[], bool]

_ENDS_WELL = b"\nstops with a checkpoint at the end of the running step; a second signal ends the process at once\n"


class Stopped(Exception):
    """A stage that was asked to stop has stopped; its text says where, and how to go on."""


def never() -> bool:
    """Do not stop."""
    return False


@contextlib.contextmanager
def stop_at_signals() -> Iterator[Stop]:
    """Yield what tells whether SIGTERM or SIGINT has arrived; after one of them, end the process with the block.

    The exit code is the shell's, 128 + the signal. A second signal acts as if this block were not there. Only the main
    thread gets signals; in another thread this block changes nothing.

    Raises:
        SystemExit: A signal has arrived, and the block ended, or raised `Stopped`.
    """
    received: list[int] = []
    try:
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

        def on_signal(number: int, _: object) -> None:
            received.append(number)
            for each, handler in before.items():
                signal.signal(each, handler)
            os.write(2, _ENDS_WELL)  # the signal may have interrupted a print, which is not reentrant

        for number in before:
            signal.signal(number, on_signal)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield lambda: bool(received)
        if received:
            print("stopped after the last step; the same command continues", flush=True)
    except Stopped as stopped:
        if not received:
            raise
        print(stopped, flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])

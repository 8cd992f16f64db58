"""When Python looks for objects that refer to each other and to which nothing else refers."""

import contextlib
import gc
from collections.abc import Callable, Iterator

COLLECT_EVERY = 100  # steps


@contextlib.contextmanager
def collected_together() -> Iterator[Callable[..., None]]:
    """Yield a hook of the loop that collects garbage after the first step and then after every hundredth one only.

    Python itself would look through all objects at moments that differ between the workers, and in each of these
    moments all workers wait for one. What is alive after the first step, such as modules and compiled code, is not
    looked through again.
    """
    was_enabled, steps = gc.isenabled(), 0

    def collect(*_: object) -> None:
        nonlocal steps
        if steps % COLLECT_EVERY == 0:
            gc.collect()
        if steps == 0:
            gc.freeze()
            gc.disable()
        steps += 1

    try:
        yield collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()

"""Python collects garbage at the same steps on all workers, and by itself again afterwards."""

import gc
import weakref

import pytest

from raychat.train.garbage import COLLECT_EVERY, collected_together


class Knot:
    """An object that refers to itself: only a collection removes it."""

    def __init__(self) -> None:
        self.me = self


def test_garbage_goes_at_the_first_step_and_then_every_hundredth() -> None:
    with collected_together() as collect:
        first = weakref.ref(Knot())
        collect()
        assert first() is None
        later = weakref.ref(Knot())
        for _ in range(COLLECT_EVERY - 1):
            collect()
        assert later() is not None
        collect()
        assert later() is None


def test_what_lives_after_the_first_step_is_not_looked_through_again() -> None:
    alive = [Knot() for _ in range(1000)]
    with collected_together() as collect:
        assert gc.get_freeze_count() == 0
        collect()
        assert gc.get_freeze_count() > len(alive)
        assert not gc.isenabled()


def fail() -> None:
    with collected_together() as collect:
        collect()
        raise KeyError


@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_python_collects_as_before(enabled: bool) -> None:
    try:
        if not enabled:
            gc.disable()
        with pytest.raises(KeyError):
            fail()
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()

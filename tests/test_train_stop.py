"""Signals: the first asks the stage to stop and ends the process with the block, the second ends it at once."""

import os
import signal
import threading

import pytest

from raychat.train.stop import Stopped, stop_at_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_asks_to_stop_and_the_process_ends_with_its_code(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        with stop_at_signals() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            raise Stopped("stopped at step 5 of 8; the same command continues")

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == code
    shown = capfd.readouterr()
    assert shown.out == "stopped at step 5 of 8; the same command continues\n"
    assert "a second signal ends the process at once" in shown.err
    assert signal.getsignal(number) is before


def test_signal_in_the_last_step_ends_the_process_too() -> None:
    with pytest.raises(SystemExit) as ended, stop_at_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_second_signal_ends_at_once() -> None:
    def train() -> None:
        with stop_at_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("still running")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    with pytest.raises(KeyboardInterrupt):
        train()
    signal.signal(signal.SIGINT, before)


def test_nothing_happens_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_at_signals() as stop:
        assert not stop()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped), stop_at_signals():
        raise Stopped("by its caller")


def test_a_thread_is_never_asked_to_stop() -> None:
    asked: list[bool] = []

    def work() -> None:
        with stop_at_signals() as stop:
            asked.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]

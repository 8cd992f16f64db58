"""The lease on a stage's folder: one holder at a time, and none for long after it is gone."""

import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from raychat import lease, paths
from raychat.lease import lease as hold


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "PATIENCE_S", 1.0)


FIRST = "lease-000001.json"


def write(folder: Path, **changes: object) -> None:
    paths.write_json(str(folder / FIRST), {"host": "elsewhere", "pid": 1, "id": "a", "beat": 0, **changes})


def test_a_second_holder_is_refused_and_the_lease_ends_with_the_block(tmp_path: Path) -> None:
    with (
        hold(str(tmp_path)),
        pytest.raises(ValueError, match=r"is being trained by process \d+ on .*choose another --run"),
        hold(str(tmp_path)),
    ):
        raise AssertionError("two holders")
    with hold(str(tmp_path)):
        assert paths.names(str(tmp_path)) == ["lease-000002.json"]


def _die_with_the_lease(folder: str) -> None:
    with hold(folder):
        time.sleep(600)


def test_a_holder_that_was_killed_on_this_machine_is_gone_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_with_the_lease, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / FIRST).exists() or not (tmp_path / FIRST).read_text():
        time.sleep(0.01)
    process.kill()
    process.join()
    with hold(str(tmp_path)):
        assert paths.names(str(tmp_path)) == ["lease-000002.json"]


def test_a_holder_that_ends_soon_is_waited_for(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_with_the_lease, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / FIRST).exists() or not (tmp_path / FIRST).read_text():
        time.sleep(0.01)
    lease.wait_until_free(str(tmp_path), timeout_s=0.01)
    with pytest.raises(ValueError, match="is being trained"), hold(str(tmp_path)):
        raise AssertionError("two holders")
    threading.Timer(0.5, process.kill).start()
    threading.Timer(0.5, process.join).start()  # or it stays as a zombie
    lease.wait_until_free(str(tmp_path), timeout_s=600.0)
    with hold(str(tmp_path)):
        assert paths.names(str(tmp_path)) == ["lease-000002.json"]


def test_an_earlier_process_with_this_number_is_gone(tmp_path: Path) -> None:
    write(tmp_path, host=socket.gethostname(), pid=os.getpid())
    with hold(str(tmp_path)):
        pass


def test_a_silent_holder_elsewhere_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    with hold(str(tmp_path)):
        pass
    assert "whether process 1 on elsewhere still trains" in capsys.readouterr().out


def test_a_holder_elsewhere_that_shows_signs_of_life_is_respected(tmp_path: Path) -> None:
    write(tmp_path)
    beats = iter(range(1, 10**6))
    sleep = time.sleep

    def beat_meanwhile(seconds: float) -> None:
        sleep(seconds)
        write(tmp_path, beat=next(beats))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", beat_meanwhile)
        with pytest.raises(ValueError, match="process 1 on elsewhere"), hold(str(tmp_path)):
            raise AssertionError("two holders")


def test_a_holder_writes_signs_of_life(tmp_path: Path) -> None:
    with hold(str(tmp_path)):
        while paths.read_json(str(tmp_path / FIRST)).get("beat", 0) < 1:
            time.sleep(0.01)


@pytest.mark.parametrize("before", [None, {"ended": True}, {"host": socket.gethostname(), "pid": os.getpid()}])
def test_of_drivers_that_start_at_once_one_gets_the_lease(tmp_path: Path, before: dict[str, object] | None) -> None:
    """They find none, or the same one that has ended or whose holder is dead."""
    if before is not None:
        write(tmp_path, **before)
    go, over, held = threading.Barrier(8), threading.Barrier(8), list[str]()

    def start() -> None:
        go.wait()
        try:
            with hold(str(tmp_path)):
                held.append("held")
                over.wait()
        except ValueError as error:
            held.append(str(error))
            over.wait()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.count("held") == 1
    assert sum("is being trained by" in text for text in held) == 7


def test_numbers_of_leases_grow_also_where_a_silent_holder_was_passed_over(tmp_path: Path) -> None:
    with hold(str(tmp_path)):
        paths.write_json(str(tmp_path / "lease-000002.json"), {"ended": True})  # of one that has waited long enough
    with hold(str(tmp_path)):
        assert paths.names(str(tmp_path)) == ["lease-000003.json"]

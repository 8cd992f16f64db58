"""The lease on a stage's folder: one holder at a time, and none for long after it is gone."""

import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from raychat import lease, paths
from raychat.lease import lease as hold


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "PATIENCE_S", 1.0)


def write(folder: Path, **changes: object) -> None:
    paths.write_json(str(folder / "lease.json"), {"host": "elsewhere", "pid": 1, "id": "a", "beat": 0, **changes})


def test_a_second_holder_is_refused_and_the_lease_ends_with_the_block(tmp_path: Path) -> None:
    with (
        hold(str(tmp_path)),
        pytest.raises(ValueError, match=r"is being trained by process \d+ on .*choose another --run"),
        hold(str(tmp_path)),
    ):
        raise AssertionError("two holders")
    assert not (tmp_path / "lease.json").exists()
    with hold(str(tmp_path)):
        assert (tmp_path / "lease.json").exists()


def _die_with_the_lease(folder: str) -> None:
    with hold(folder):
        time.sleep(600)


def test_a_holder_that_was_killed_on_this_machine_is_gone_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_with_the_lease, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "lease.json").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with hold(str(tmp_path)):
        assert paths.read_json(str(tmp_path / "lease.json"))["host"] == socket.gethostname()


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
        first = paths.read_json(str(tmp_path / "lease.json"))["beat"]
        while paths.read_json(str(tmp_path / "lease.json"))["beat"] == first:
            time.sleep(0.01)

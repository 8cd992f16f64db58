"""What a job shows: rows in a file that resuming cuts, wandb and TensorBoard when asked for, few lines of progress."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raychat.log import MetricsLog, Progress, Throttle, read_metrics


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_resumed_log_drops_the_rows_after_its_start(tmp_path: Path, storage: str) -> None:
    folder = str(tmp_path) if storage == "local" else f"memory://{tmp_path.name}"
    for start, last in ((0, 5), (3, 4)):
        log = MetricsLog(folder, start=start, name="test/base", settings={})
        for step in range(start + 1, last + 1):
            log.write({"step": step, "loss": 10.0 * start + step})
        log.close()
    assert [row["loss"] for row in read_metrics(folder)] == [1.0, 2.0, 3.0, 34.0]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 2.0}]


@pytest.mark.slow
def test_wandb_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = MetricsLog(str(tmp_path), start=0, name="test/base", settings={"depth": 2})
    log.write({"step": 1, "loss": 2.0})
    log.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


def events(folder: Path) -> list[Any]:
    """Read TensorBoard's events: of each its length (8 bytes), a checksum (4), itself, and a checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tensorboard_gets_the_figures_of_every_step_when_asked(tmp_path: Path) -> None:
    MetricsLog(str(tmp_path), start=0, name="test/base", settings={}).close()
    assert not (tmp_path / "tensorboard").exists()
    log = MetricsLog(str(tmp_path), start=0, name="test/base", settings={}, tensorboard=True)
    log.write({"step": 1, "loss": 2.5, "note": "text", "mfu": None})
    log.write({"step": 2, "loss": 1.5})
    log.close()
    got = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert got == [(1, "loss", 2.5), (2, "loss", 1.5)]


def test_tensorboard_forgets_what_a_resumed_stage_does_again(tmp_path: Path) -> None:
    MetricsLog(str(tmp_path), start=7, name="test/base", settings={}, tensorboard=True).close()
    started = [e.step for e in events(tmp_path / "tensorboard") if e.session_log.status == e.session_log.START]
    assert started == [8]


@pytest.mark.parametrize(
    "environment, asked, expected",
    [
        ({}, False, False),
        ({}, True, True),
        ({"WANDB_API_KEY": "key"}, False, True),
        ({"WANDB_PROJECT": "mine"}, False, True),
        ({"WANDB_MODE": "offline"}, False, True),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "key"}, True, False),
    ],
)
def test_wandb_is_used_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: bool, expected: bool
) -> None:
    import wandb

    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key")  # a login alone asks for nothing
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    MetricsLog(str(tmp_path), start=0, name="test/base", settings={}, wandb=asked).close()
    assert bool(started) == expected
    assert [run["project"] for run in started] == [environment.get("WANDB_PROJECT", "raychat")] * expected


def test_throttle_is_due_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    throttle = Throttle(5)
    due = []
    for now in (104.9, 105.0, 105.1, 109.9, 110.1, 111.0):
        due.append(throttle.due(force=now == 111.0))
    assert due == [False, True, False, False, True, True]


def test_progress_counts_to_the_end_in_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines: list[str] = []
    progress = Progress("count", steps=100, unit="block", log=lines.append)
    for _ in progress.track(range(100)):
        now += 0.25
    assert lines == ["count: block 41/100 eta 15s", "count: block 81/100 eta 5s", "count: block 100/100"]


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tiny/base", steps=2) as progress:
        progress.show({"step": 1, "loss": 2.5, "tok_per_s": 1000.0})
        progress.show({"step": 2, "loss": 2.0, "tok_per_s": 1000.0})
    out = capsys.readouterr().out
    assert "tiny/base: step 2/2 loss 2.0000 tok/s 1,000" in out

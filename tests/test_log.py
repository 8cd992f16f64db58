"""What a stage says: rows in a file that resuming cuts, the same in wandb offline, progress in lines."""

import json
from pathlib import Path

import pytest

from raychat.log import MetricsLog, Progress, read_metrics


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
def test_wandb_runs_offline_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    log = MetricsLog(str(tmp_path), start=0, name="test/base", settings={"depth": 2})
    log.write({"step": 1, "loss": 2.0})
    log.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tiny/base", steps=2) as progress:
        progress.show({"step": 1, "loss": 2.5, "tok_per_s": 1000.0})
        progress.show({"step": 2, "loss": 2.0, "tok_per_s": 1000.0})
    out = capsys.readouterr().out
    assert "tiny/base: step 2/2 loss 2.0000 tok/s 1,000" in out

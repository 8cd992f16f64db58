"""What a stage says while it runs: a progress bar or lines on the terminal, rows in a JSONL file, wandb."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from raychat import paths

Report = Callable[[dict[str, Any]], None]
_LINE_EVERY_S = 10.0  # between lines where there is no terminal to draw a bar on


class Throttle:
    """Say yes at most every so many seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, time.monotonic()

    def due(self, force: bool = False) -> bool:
        """Return whether it is time again."""
        if force or time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            return True
        return False


class Progress:
    """Show reported rows: a bar with step, loss, tok/s, MFU and time left on a terminal, else a line now and then."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, steps
        self._printed = self._started = time.monotonic()
        self._first: int | None = None
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._steps, note="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Show one row; keys it does not know are shown as they are."""
        step = row.get("step", 0)
        note = describe(row)
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = step, now
        last = step >= self._steps
        if now - self._printed >= _LINE_EVERY_S or last or "loss" not in row:
            self._printed = now
            left = (now - self._started) / max(step - self._first, 1) * (self._steps - step)
            print(
                f"{self._name}: step {step}/{self._steps} {note}"
                + (f" eta {left:.0f}s" if step > self._first and not last else ""),
                flush=True,
            )


def describe(row: dict[str, Any]) -> str:
    """Say a row's figures in one line.

    >>> describe({"step": 3, "loss": 2.34567, "tok_per_s": 12345.6, "mfu": 0.41})
    'loss 2.3457 tok/s 12,346 mfu 41.0%'
    """
    parts = []
    for key, value in row.items():
        if key in ("step", "t", "lr") or value is None:
            continue
        if key == "tok_per_s":
            parts.append(f"tok/s {value:,.0f}")
        elif key == "mfu":
            parts.append(f"mfu {value:.1%}")
        else:
            parts.append(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}")
    return " ".join(parts)


class MetricsLog:
    """The rows of a stage in `metrics.jsonl`, and the same in wandb.

    A resumed stage drops the rows after the step that it goes on from: the file reads like an uninterrupted run.
    Local files grow by a line a row; on an object store the file is written anew every so often and when flushed:
    before every checkpoint, so that a kill loses no row of the steps that are behind it.
    """

    _UPLOAD_EVERY_S = 30.0

    def __init__(self, folder: str, *, start: int, name: str, settings: dict[str, Any], wandb: bool = False) -> None:
        self._path = paths.join(folder, "metrics.jsonl")
        self._lines = [json.dumps(row) for row in read_metrics(folder) if row["step"] <= start]
        self._uploaded = time.monotonic()
        self._write()
        self._wandb = _wandb_run(folder, name, settings)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it must have a `step`."""
        self._lines.append(json.dumps(row))
        if paths.is_local(self._path):
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(self._lines[-1] + "\n")
        elif time.monotonic() - self._uploaded > self._UPLOAD_EVERY_S:
            self._write()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def flush(self) -> None:
        """Write what is not written yet."""
        if not paths.is_local(self._path):
            self._write()

    def close(self) -> None:
        """Write what is not written yet and end the wandb run."""
        self.flush()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self) -> None:
        self._uploaded = time.monotonic()
        paths.write_text(self._path, "".join(line + "\n" for line in self._lines))


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """Return the rows of a stage's `metrics.jsonl`; empty where there is none. A torn last line is left out."""
    path = paths.join(folder, "metrics.jsonl")
    if not paths.exists(path):
        return []
    rows = []
    for line in paths.read_text(path).splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _wandb_run(folder: str, name: str, settings: dict[str, Any]) -> Any | None:
    """Start a wandb run: WANDB_MODE says how; without it, online with a login and offline without one."""
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    if mode == "disabled":
        return None
    import wandb

    where = folder if paths.is_local(folder) else tempfile.mkdtemp(prefix="raychat-wandb-")
    quiet = wandb.Settings(console="off", silent=True)
    return wandb.init(
        project="raychat",
        name=name,
        id=name.replace("/", "-"),
        resume="allow",
        mode=mode,
        dir=where,
        config=settings,
        settings=quiet,
    )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = os.environ.get("NETRC", os.path.expanduser("~/.netrc"))
    if not os.path.exists(netrc):
        return False
    with open(netrc, encoding="utf-8") as f:
        return "api.wandb.ai" in f.read()

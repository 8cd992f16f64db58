"""What a job shows while it runs: a progress bar or lines on the terminal, rows in a JSONL file, wandb, TensorBoard."""

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from raychat import paths

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Report = Callable[[dict[str, Any]], None]
Result = TypeVar("Result")
_LINE_EVERY_S = 10.0  # between lines where there is no terminal to draw a bar on
_UPLOAD_EVERY_S = 30.0  # between uploads of a growing file to an object store


class Throttle:
    """Tell when something is due, at most every `every_s` seconds; first after `first_s` (None = a whole period)."""

    def __init__(self, every_s: float, first_s: float | None = None) -> None:
        self._every_s = every_s
        self._last = time.monotonic() - (0.0 if first_s is None else every_s - first_s)

    def due(self, force: bool = False) -> bool:
        """Tell whether it is due, and begin the next period if it is; `force` makes it due."""
        now = time.monotonic()
        if not force and now - self._last < self._every_s:
            return False
        self._last = now
        return True


class Progress:
    """Show how far a job is: a bar with its figures and the time left on a terminal, else a line now and then."""

    def __init__(self, name: str, steps: int, *, unit: str = "step", log: Callable[[str], None] | None = None) -> None:
        """Begin at step 0 of `steps`. With `log`, which gets the lines, there is no bar."""
        self._name, self._steps, self._unit = name, steps, unit
        self._log = log or functools.partial(print, flush=True)
        self._lines = Throttle(_LINE_EVERY_S)
        self._first: tuple[int, float] | None = None  # the first step shown, and when
        self._bar: Bar | None = None
        if log is None and sys.stderr.isatty():
            self._bar = _new_bar()

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._steps, note="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Show a row of metrics: `step` and any figures. Rows without a loss and spikes are rare; each has its line."""
        self._show(row, force="loss" not in row or "spike" in row)

    def advance(self, step: int, **figures: Any) -> None:
        """Show that `step` is done."""
        self._show({"step": step, **figures})

    def track(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield the results, each of which is a step."""
        for step, result in enumerate(results, start=1):
            self.advance(step)
            yield result

    def _show(self, row: dict[str, Any], force: bool = False) -> None:
        step, note = row.get("step", 0), describe(row)
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
            return
        first, started = self._first = self._first or (step, time.monotonic())
        if not self._lines.due(force or step >= self._steps):
            return
        line = f"{self._name}: {self._unit} {step}/{self._steps} {note}".rstrip()
        if first < step < self._steps:
            line += f" eta {(time.monotonic() - started) / (step - first) * (self._steps - step):.0f}s"
        self._log(line)


def _new_bar() -> "Bar":
    from rich import progress as rich

    times, note = (rich.TimeElapsedColumn(), rich.TimeRemainingColumn()), rich.TextColumn("{task.fields[note]}")
    return rich.Progress(
        rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), *times, note
    )


def describe(row: dict[str, Any]) -> str:
    """Return a row's figures as one line.

    >>> describe({"step": 3, "loss": 2.34567, "tok_per_s": 12345.6, "mfu": 0.41, "spike": True})
    'loss 2.3457 tok/s 12,346 mfu 41.0% spike'
    """
    parts = []
    for key, value in row.items():
        if key in ("step", "t", "lr") or value is None or isinstance(value, list):
            continue
        if key == "tok_per_s":
            parts.append(f"tok/s {value:,.0f}")
        elif key == "mfu":
            parts.append(f"mfu {value:.1%}")
        elif value is True:
            parts.append(key)
        else:
            style = {float: ".4f", int: ","}.get(type(value), "")
            parts.append(f"{key} {value:{style}}")
    return " ".join(parts)


class GrowingFile:
    """A text that is appended to. On an object store the whole file is written again at times and when flushed."""

    def __init__(self, path: str, begin: str | None = None) -> None:
        """Begin with a text; None = with what is there."""
        self._path, self._uploads = path, Throttle(_UPLOAD_EVERY_S)
        self._texts: list[str] | None = None  # all of it, for an object store
        if begin is not None:
            paths.write_text(path, begin)
        if paths.is_local(path):
            os.makedirs(paths.parent(path), exist_ok=True)
            self.append("")  # so it is there at once
        elif begin is None:
            self._texts = [paths.read_text(path)] if paths.exists(path) else []
        else:
            self._texts = [begin]

    def append(self, text: str) -> None:
        if self._texts is None:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(text)
            return
        self._texts.append(text)
        if self._uploads.due():
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._texts is not None:
            paths.write_text(self._path, "".join(self._texts))


class MetricsLog:
    """The rows of a stage in `metrics.jsonl`, and in wandb and TensorBoard where these are asked for.

    A resumed stage drops the rows after the step it resumes from, so the file reads like an uninterrupted run. Flush
    before every checkpoint: then a kill loses no row of a step that the checkpoint includes, on an object store too.
    """

    def __init__(
        self,
        folder: str,
        *,
        start: int,
        name: str,
        settings: dict[str, Any],
        wandb: bool = False,
        tensorboard: bool = False,
    ) -> None:
        """Open the log of a stage.

        Args:
            start: the step it resumes from.
            name: of the wandb run.
            settings: what wandb shows as its config.
            wandb: log to wandb also where no WANDB_* variable of the environment asks for it.
            tensorboard: log to `folder`/tensorboard.
        """
        rows = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] <= start]
        self._file = GrowingFile(paths.join(folder, "metrics.jsonl"), "".join(rows))
        self._wandb = _wandb_run(folder, name, settings) if _wandb_wanted(wandb) else None
        self._tensorboard = _tensorboard_writer(folder, start) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it must have a `step`."""
        self._file.append(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])
        if self._tensorboard is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._tensorboard.add_scalar(key, value, row["step"])

    def flush(self) -> None:
        """Write what is not written yet."""
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Write what is not written yet and end the run in wandb and TensorBoard."""
        self.flush()
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """Return the rows of a stage's `metrics.jsonl`, none where it does not exist. A torn last line is left out."""
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


def _wandb_wanted(asked: bool) -> bool:
    """Tell whether to log to wandb: when asked, or when the environment sets it up. WANDB_MODE=disabled means never."""
    mode, *others = (os.environ.get(f"WANDB_{name}") for name in ("MODE", "API_KEY", "PROJECT"))
    return mode != "disabled" and bool(asked or mode or any(others))


def _wandb_run(folder: str, name: str, settings: dict[str, Any]) -> Any:
    """Start a wandb run, or resume the one of this name. wandb itself reads WANDB_MODE and finds the login."""
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "raychat",
        name=name,
        id=name.replace("/", "-"),
        resume="allow",
        dir=folder if paths.is_local(folder) else tempfile.mkdtemp(prefix="raychat-wandb-"),
        config=settings,
        settings=wandb.Settings(console="off", silent=True),
    )


def _tensorboard_writer(folder: str, start: int) -> Any:
    """Open TensorBoard's log of a stage, in which the steps after `start` count no more."""
    import tensorboardX

    writer: Any = tensorboardX
    return writer.SummaryWriter(paths.join(folder, "tensorboard"), purge_step=start + 1)

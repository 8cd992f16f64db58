"""The rows of a stage's metrics: losses and spikes, skipped steps, speed; where they go."""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from raychat import dist
from raychat.device import peak_flops
from raychat.log import MetricsLog, Report, Throttle
from raychat.model import flops
from raychat.model.base import Model

_RECENT = 50  # losses that a loss is compared with
_ENOUGH = 10  # of them; fewer say little about the noise
# Of the recent losses' noise. Noise that is about normal gets that far once in 10^9 steps; small batches have longer
# tails, and a rare false mark costs nothing.
_DEVIATIONS = 6.0
_MAD_TO_DEVIATION = 1.4826  # median absolute deviation to standard deviation, for normal noise


class Clock:
    """Tokens per second and MFU of the step just done, evaluation and saving left out."""

    def __init__(self, tokens_per_step: int, model: Model, device: torch.device) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_token, self._peak = model.flops_per_token(), peak_flops(device)
        self._last = time.monotonic()

    def tick(self) -> dict[str, float]:
        """End a step. Its loss has been read from the device: from one reading to the next a whole step passes."""
        now = time.monotonic()
        rate = self._tokens_per_step / max(now - self._last, 1e-9)
        self._last = now
        if not self._tokens_per_step:
            return {}
        mfu = flops.mfu(rate, self._flops_per_token, self._peak, dist.world().size)
        return {"tok_per_s": round(rate, 1), **({} if mfu is None else {"mfu": round(mfu, 4)})}

    def restart(self) -> None:
        self._last = time.monotonic()


class Spikes:
    """Tell a loss far above the recent ones. Medians, so that spikes do not hide the spikes that follow them."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """Begin with the losses so far."""
        self._recent = deque(losses, maxlen=_RECENT)

    def is_spike(self, loss: float) -> bool:
        """Tell whether this step's loss, which is remembered, is one. NaN is none, and is not remembered.

        >>> spikes = Spikes([2.0, 2.1] * 5)
        >>> [spikes.is_spike(loss) for loss in (2.2, 3.0, 1.0)]
        [False, True, False]
        """
        if math.isnan(loss):
            return False
        recent = list(self._recent)
        self._recent.append(loss)
        if len(recent) < _ENOUGH:
            return False
        median = statistics.median(recent)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in recent)
        return 0 < _DEVIATIONS * deviation < loss - median


class Rows:
    """A stage's rows for metrics.jsonl and for whoever watches it; on other workers than rank 0 nobody does."""

    def __init__(
        self, log: MetricsLog | None, report: Report, clock: Clock, spikes: Spikes, *, every_s: float, spent_s: float
    ) -> None:
        """Begin a stage, or resume it.

        Args:
            log: None on other workers than rank 0.
            every_s: between steps that are reported; skipped steps and spikes always are.
            spent_s: seconds spent on the stage before it was resumed.
        """
        self.clock, self._log, self._report, self._spikes = clock, log, report, spikes
        self._began, self._throttle = time.monotonic() - spent_s, Throttle(every_s)

    def seconds(self) -> float:
        """Return the seconds spent on the stage so far."""
        return round(time.monotonic() - self._began, 3)

    def add_step(self, number: int, loss: float, figures: Mapping[str, Any], *, last: bool) -> None:
        """Add the row of a step. Its loss is NaN where it was skipped; then the figures should say so instead."""
        if self._log is None:
            return
        row: dict[str, Any] = {"step": number, "loss": loss, **figures, **self.clock.tick(), "t": self.seconds()}
        if rare := math.isnan(loss):
            del row["loss"]
        elif rare := self._spikes.is_spike(loss):
            row["spike"] = True
        self._write(row, report=self._throttle.due(force=rare or last))

    def add(self, number: int, figures: Mapping[str, Any]) -> None:
        """Add figures that few steps have."""
        self._write({"step": number, **figures, "t": self.seconds()}, report=True)

    def _write(self, row: dict[str, Any], *, report: bool) -> None:
        if self._log is not None:
            self._log.write(row)
            if report:
                self._report(row)

    def flush(self) -> None:
        """Bring what is not written yet to the storage."""
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Write what is not written yet and end the wandb run."""
        if self._log is not None:
            self._log.close()

"""What the processor and the GPU do in a few steps, as a trace to look at."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity

from raychat import paths

WARMUP_STEPS = 5  # in which the model is compiled and memory is allocated; the profiler starts with the last of them
STEPS = 3  # that are recorded


@contextlib.contextmanager
def traced(file: str | None) -> Iterator[Callable[..., None]]:
    """Yield a hook of the loop that records the sixth to eighth step of this process.

    Args:
        file: where the trace goes, `.json.gz`, once they are done; None = none is made. https://ui.perfetto.dev and
            chrome://tracing show it.
    """
    if file is None:
        yield lambda *_: None
        return
    steps = 0

    def record(*_: object) -> None:
        nonlocal steps
        steps += 1
        profiler.step()

    def write(profiler: torch.profiler.profile) -> None:
        if steps < WARMUP_STEPS + STEPS:
            return  # the stage ends within them
        with tempfile.TemporaryDirectory(prefix="raychat-trace-") as folder:
            profiler.export_chrome_trace(written := os.path.join(folder, "trace.json.gz"))
            paths.write_bytes(file, paths.read_bytes(written))
        print(f"trace of {STEPS} steps: {file} (open it in https://ui.perfetto.dev)", flush=True)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    phases = torch.profiler.schedule(wait=WARMUP_STEPS - 1, warmup=1, active=STEPS, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=phases, on_trace_ready=write) as profiler:
        yield record
    if steps < WARMUP_STEPS + STEPS:
        print(f"no trace: only {steps} steps were taken, and the first {WARMUP_STEPS} are left out", flush=True)

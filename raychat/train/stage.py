"""What all stages do around the loop: resume, log, evaluate, save, sum up.

A stage's folder holds `step_000123/` checkpoints, `metrics.jsonl`, and, once it is finished, `summary.json`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raychat import checkpoint, dist, paths
from raychat.data.batches import Step
from raychat.device import peak_flops, synchronize
from raychat.log import MetricsLog, Report
from raychat.model import flops
from raychat.model.gpt import GPT
from raychat.optim import MuonAdamW
from raychat.optim.schedule import Schedule
from raychat.tokenizer import Tokenizer
from raychat.train.loop import every, rate, train

Metrics = dict[str, float]
_LOG_EVERY_S = 1.0  # rows reported to the terminal; metrics.jsonl has every step


@dataclass(frozen=True)
class Stage:
    """One training stage, as values."""

    name: str  # "<run>/<stage>", for displays and wandb
    folder: str  # where its checkpoints and metrics go
    tokenizer: Tokenizer
    steps: int
    tokens_per_step: int  # for tok/s and MFU; 0 = it varies, so there is neither
    schedule: Schedule
    settings: dict[str, Any]  # recorded in every checkpoint; a resumed stage must have the same
    parent: str | None = None  # the checkpoint it starts from
    eval_every: int = 0  # steps; 0 = at the end only
    save_every: int = 0


def finished(folder: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a finished stage, or None where it is not finished.

    Raises:
        ValueError: the folder holds this stage with other settings.
    """
    last = checkpoint.latest(folder)
    if last is not None:
        check_settings(folder, checkpoint.read_meta(last)["settings"], settings)
    path = paths.join(folder, "summary.json")
    return paths.read_json(path) if last is not None and paths.exists(path) else None


def summary_of(path: str) -> dict[str, Any]:
    """Return the summary of the stage that a checkpoint is of; empty for one that stands alone."""
    file = paths.join(paths.parent(path), "summary.json")
    return paths.read_json(file) if paths.exists(file) else {}


def check_settings(folder: str, got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ValueError where a stage on disk was made with other settings than are asked for now."""
    different = sorted(k for k in got.keys() | expected.keys() if _plain(got.get(k)) != _plain(expected.get(k)))
    if different:
        details = ", ".join(f"{k}: there {got.get(k)!r}, now {expected.get(k)!r}" for k in different)
        raise ValueError(
            f"{folder} was made with other settings ({details}); choose another --run or remove that folder"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def run(
    stage: Stage,
    model: GPT,
    optimizer: MuonAdamW,
    batches: Callable[[int], Iterator[Step]],
    report: Report,
    *,
    forward: nn.Module | None = None,
    evaluate: Callable[[], Metrics] | None = None,
    facts: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train a stage from its latest checkpoint, or from the model as it is given, to its end; return its summary.

    Every worker calls it. Killed at any moment, it goes on from the last checkpoint to the same final weights.

    Args:
        batches: from a step number to that step and all following.
        forward: what the loop calls, where that is not the model itself but, say, its compiled form.
        evaluate: collective; its figures go into the metrics and, at the end, into the summary.
        facts: what else the summary should hold, asked for at the end (rank 0).
    """
    rank, size = dist.world()
    device = next(model.parameters()).device
    start, spent, latest_metrics = _resume(stage, model, optimizer)
    began = time.monotonic() - spent
    log = MetricsLog(stage.folder, start=start, name=stage.name, settings=stage.settings) if rank == 0 else None
    clock = _Clock(stage.tokens_per_step, flops.per_token(model), peak_flops(device), size)

    def log_step(number: int, loss: Tensor, step: Step) -> None:
        if log is None:
            return
        synchronize(device)
        now = {"step": number, "loss": loss.item(), "lr": rate(stage.schedule, number - 1, step), **step.metrics}
        now |= {**clock.tick(), "t": round(time.monotonic() - began, 3)}
        log.write(now)
        if clock.due(number == stage.steps):
            report(now)

    def evaluate_and_log(number: int, _: Tensor, __: Step) -> None:
        if evaluate is None:
            return
        model.eval()
        metrics = evaluate()
        model.train()
        clock.restart()
        latest_metrics.update(metrics)
        if log is not None:
            now = {"step": number, **metrics, "t": round(time.monotonic() - began, 3)}
            log.write(now)
            report(now)

    def save(number: int, _: Tensor, __: Step) -> None:
        meta = {
            "settings": stage.settings,
            "parent": stage.parent,
            "metrics": dict(latest_metrics),
            "wall_s": round(time.monotonic() - began, 3),
            "workers": size,
        }
        if log is not None:
            log.flush()
        checkpoint.save_checkpoint(stage.folder, number, model, optimizer, stage.tokenizer, meta)
        clock.restart()

    hooks = [
        log_step,
        every(stage.eval_every, stage.steps, evaluate_and_log),
        every(stage.save_every, stage.steps, save),
    ]
    model.train()
    train(
        forward or model,
        optimizer,
        batches(start),
        steps=stage.steps,
        schedule=stage.schedule,
        hooks=hooks,
        start=start,
    )
    if log is None:
        return {}
    log.close()
    summary = {
        "steps": stage.steps,
        "tokens": stage.steps * stage.tokens_per_step,
        "wall_s": round(time.monotonic() - began, 3),
        "workers": size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "num_params": sum(p.numel() for p in model.parameters()),
        **latest_metrics,
        **(facts() if facts else {}),
        "checkpoint": checkpoint.latest(stage.folder),
        "settings": stage.settings,
    }
    paths.write_json(paths.join(stage.folder, "summary.json"), summary)
    return summary


def _resume(stage: Stage, model: GPT, optimizer: MuonAdamW) -> tuple[int, float, Metrics]:
    """Load the stage's latest checkpoint, if it has one; return its steps, the seconds they took, its last metrics."""
    last = checkpoint.latest(stage.folder)
    if last is None:
        return 0, 0.0, {}
    meta = checkpoint.read_meta(last)
    check_settings(stage.folder, meta["settings"], stage.settings)
    checkpoint.load_weights(last, model)
    checkpoint.load_optimizer(last, optimizer)
    if dist.world().rank == 0:
        print(f"{stage.name}: goes on from step {meta['step']} of {stage.steps}", flush=True)
    return meta["step"], meta["wall_s"], meta["metrics"]


class _Clock:
    """Tokens per second and MFU of the step just done, evaluation and saving left out."""

    def __init__(self, tokens_per_step: int, flops_per_token: int, peak: float | None, workers: int) -> None:
        self._tokens_per_step, self._flops_per_token, self._peak, self._workers = (
            tokens_per_step,
            flops_per_token,
            peak,
            workers,
        )
        self._last = self._reported = time.monotonic()

    def tick(self) -> Metrics:
        now = time.monotonic()
        rate = self._tokens_per_step / max(now - self._last, 1e-9)
        self._last = now
        if not self._tokens_per_step:
            return {}
        mfu = flops.mfu(rate, self._flops_per_token, self._peak, self._workers)
        return {"tok_per_s": round(rate, 1), **({} if mfu is None else {"mfu": round(mfu, 4)})}

    def due(self, last: bool) -> bool:
        if last or time.monotonic() - self._reported >= _LOG_EVERY_S:
            self._reported = time.monotonic()
            return True
        return False

    def restart(self) -> None:
        self._last = time.monotonic()

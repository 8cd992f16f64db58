"""What all stages do around the loop: start or resume (`start.py`), log, evaluate, save, sum up.

A stage's folder holds `step_000123/` checkpoints, `metrics.jsonl`, and, once it is finished, `summary.json`.
Uncommitted changes of the code are beside them as `code-<hash>.diff`, and `trace.json.gz` where one was asked for.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from raychat import checkpoint, dist, paths, provenance
from raychat.checkpoint import Meta, Saving
from raychat.data.batches import Step
from raychat.device import compute_dtype, default_device, training_dtype
from raychat.log import MetricsLog, Report, read_metrics
from raychat.optim import Optimizer, schedule
from raychat.tokenizer import Tokenizer
from raychat.train.garbage import collected_together
from raychat.train.loop import every, is_due, rate, train
from raychat.train.profiling import traced
from raychat.train.stage import Feed, Learner, Stage
from raychat.train.start import FROM_ZERO, build, find_origin
from raychat.train.stop import Stop, Stopped, never
from raychat.train.watch import Clock, Rows, Spikes

LOG_EVERY_S = 1.0  # between rows reported to the terminal; metrics.jsonl has every step
QUICK_S = 1.0  # a checkpoint that a fast disk has by then is published before the next step
MAX_REWINDS = 2  # returns to a checkpoint in one stage


def run_stage(stage: Stage, report: Report, *, stop: Stop = never) -> dict[str, Any]:
    """Train a stage from its latest checkpoint, or from its start, to its end; return its summary.

    Every worker calls it. Killed or stopped at any moment and called again, it ends in the same weights.

    Args:
        report: gets the rows of rank 0.
        stop: asked at every step; where it is True on some worker, all save a checkpoint after the step and stop.

    Raises:
        Stopped: it was asked to, before the last step.
        FloatingPointError: losses or gradients stay NaN or infinite; see `loop.train`.
    """
    origin = find_origin(stage)
    if FROM_ZERO in origin.meta.metrics:
        stage = replace(stage, schedule=partial(schedule.warmed_up, stage.schedule))
    device = default_device()
    # In reinforcement the learner's model also decodes.
    dtype = compute_dtype(device) if stage.matrices_only else training_dtype(device)
    model, optimizer = build(stage, origin, device, dtype)
    learner = Learner(stage, model, Tokenizer.load(origin.tokenizer), device, dtype)
    assert stage.source is not None
    around = _Around(learner, optimizer, stage.source(learner), origin.meta, report)
    hooks = [
        around.log_step,
        around.publish,
        every(stage.runtime.eval_every, stage.steps, around.evaluate),
        every(stage.runtime.save_every, stage.steps, around.save),
    ]
    with traced(stage.trace) as record, collected_together() as collect:
        done = train(
            model,
            optimizer,
            _seeded(around.feed.steps(around.start), stage.recipe.seed, around.start),
            nll=around.feed.nll,
            steps=stage.steps,
            schedule=stage.schedule(stage.steps),
            hooks=[record, *hooks, collect],
            start=around.start,
            stop=stop,
            rewind=around.rewind,
        )
    return around.close(done)


def _seeded(steps: Iterator[Step], seed: int, start: int) -> Iterator[Step]:
    """Yield steps, and seed PyTorch before each: dropout is the same whatever was drawn before, also after a resume."""
    for number, step in enumerate(steps, start):
        torch.manual_seed(hash((seed, number, dist.world().rank)))
        yield step


class _Around:
    """The hooks of one worker, and what they share."""

    def __init__(self, learner: Learner, optimizer: Optimizer, feed: Feed, meta: Meta, report: Report) -> None:
        """meta: how far the stage is."""
        self.feed = feed
        self._provenance = provenance.record(learner.stage.folder) if dist.world().rank == 0 else None
        self._stage, self._model, self._optimizer, self._learner = learner.stage, learner.model, optimizer, learner
        self._schedule = learner.stage.schedule(learner.stage.steps)
        self.start, self._latest = meta.step, dict(meta.metrics)
        self._saved = self.start
        self._saving: Saving | None = None  # the checkpoint whose files are being written
        self._rank, self._size = dist.world()
        self._rows = self._open_rows(report, meta.wall_s)

    def _open_rows(self, report: Report, spent_s: float) -> Rows:
        stage, log, losses = self._stage, None, list[float]()
        if self._rank == 0:
            settings = asdict(stage.recipe) | asdict(stage.runtime)
            asked = {"wandb": stage.runtime.wandb, "tensorboard": stage.runtime.tensorboard}
            log = MetricsLog(stage.folder, start=self.start, name=stage.name, settings=settings, **asked)
            losses = [row["loss"] for row in read_metrics(stage.folder) if "loss" in row]
        clock = Clock(self.feed.tokens_per_step, self._model, self._learner.device)
        return Rows(log, report, clock, Spikes(losses), every_s=LOG_EVERY_S, spent_s=spent_s)

    def log_step(self, number: int, loss: float, step: Step) -> None:
        figures = {"lr": rate(self._schedule, number - 1, step), **step.metrics}
        if math.isnan(loss):
            self._latest["skipped"] = figures["skipped"] = self._latest.get("skipped", 0) + 1
        self._rows.add_step(number, loss, figures, last=number == self._stage.steps)

    def evaluate(self, number: int, loss: float, step: Step) -> None:
        self._model.eval()
        metrics = self.feed.evaluate()
        self._model.train()
        self._rows.clock.restart()
        self._latest.update(metrics)
        if metrics:
            self._rows.add(number, metrics)

    def save(self, number: int, loss: float, step: Step) -> None:
        """Save a checkpoint, unless the step was skipped: how many there were in a row would be forgotten."""
        if not math.isnan(loss) or number == self._stage.steps:
            self._save(number)

    def publish(self, number: int, loss: float, step: Step) -> None:
        """Publish the checkpoint whose files were being written, if all workers have written them."""
        if self._saving is not None and self._saving.is_written():
            self._publish()

    def _publish(self) -> None:
        """Wait for the checkpoint whose files are being written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.publish()
            self._rows.clock.restart()

    def _save(self, number: int) -> None:
        if number == self._saved:
            return
        self._publish()
        self._saved = number
        stage = self._stage
        runtime = replace(stage.runtime, workers=self._size)
        meta = Meta(number, stage.recipe, runtime, metrics=dict(self._latest), wall_s=self._rows.seconds())
        self._rows.flush()
        keep = stage.runtime.keep if self._is_regular(number) else 0  # `rewind` may need an older one
        tokenizer = self._learner.tokenizer
        self._saving = checkpoint.begin_checkpoint(stage.folder, self._model, self._optimizer, tokenizer, meta, keep)
        if self._saving.is_written(QUICK_S):
            self._publish()
        self._rows.clock.restart()

    def rewind(self, number: int) -> bool:
        """Go back to the newest regular checkpoint, at most twice in a stage; tell whether that was possible.

        A stage that was stopped in between has more checkpoints, and must end in the same weights.
        """
        self._publish()
        rewinds = self._latest.get("rewinds", 0)
        found = {checkpoint.read_meta(path).step: path for path in checkpoint.all_in(self._stage.folder)}
        regular = [step for step in found if self._is_regular(step)]
        if not regular or rewinds == MAX_REWINDS:
            return False
        self._latest["rewinds"] = rewinds + 1
        checkpoint.verify(found[regular[-1]])
        checkpoint.load_weights(found[regular[-1]], self._model)
        checkpoint.load_optimizer(found[regular[-1]], self._optimizer)
        self._rows.add(number, {"rewound_to": regular[-1]})
        return True

    def _is_regular(self, number: int) -> bool:
        return is_due(number, self._stage.runtime.save_every, self._stage.steps)

    def close(self, done: int) -> dict[str, Any]:
        """Write and return the summary (rank 0; empty on the others). Raises Stopped before the last step."""
        stage, device = self._stage, self._learner.device
        if done < stage.steps:
            self._save(done)
        self._publish()
        self._rows.close()
        if done < stage.steps:
            raise Stopped(f"{stage.name}: stopped at step {done} of {stage.steps}; the same command continues")
        if self.start == stage.steps:  # a checkpoint has the figures of its evaluation, not how sure they are
            self._model.eval()
            self.feed.evaluate()
        if self._rank > 0:
            return {}
        summary = {
            "steps": stage.steps,
            "tokens": stage.steps * self.feed.tokens_per_step,
            "wall_s": self._rows.seconds(),
            "workers": self._size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "num_params": sum(p.numel() for p in self._model.parameters()),
            "provenance": self._provenance,
            **self._latest,
            **self.feed.facts(),
            "checkpoint": checkpoint.latest(stage.folder),
            "recipe": asdict(stage.recipe),
            "runtime": asdict(replace(stage.runtime, workers=self._size)),
        }
        paths.write_json(file := paths.join(stage.folder, "summary.json"), summary)
        written: dict[str, Any] = paths.read_json(file)
        return written

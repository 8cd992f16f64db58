"""What all stages do around the loop: start or resume, log, evaluate, save, sum up.

A stage's folder holds `step_000123/` checkpoints, `metrics.jsonl`, and, once it is finished, `summary.json`.
Uncommitted changes of the code are beside them as `code-<hash>.diff`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from raychat import checkpoint, dist, paths, provenance
from raychat.checkpoint import Meta
from raychat.data.batches import Step
from raychat.device import compute_dtype, default_device, peak_flops, synchronize
from raychat.log import MetricsLog, Report, Throttle
from raychat.model import flops, registry
from raychat.model.base import Model
from raychat.optim import Optimizer, build_optimizer
from raychat.optim.schedule import Schedule
from raychat.recipe import Recipe, Runtime, differences
from raychat.tokenizer import Tokenizer
from raychat.train.loop import Nll, every, rate, train

Metrics = dict[str, float]
LOG_EVERY_S = 1.0  # between rows reported to the terminal; metrics.jsonl has every step


class Feed(Protocol):
    """What one worker trains and evaluates on."""

    nll: Nll  # the learner's model's, compiled where all batches have one shape
    tokens_per_step: int  # for tok/s and MFU; 0 = it varies, so neither is reported

    def steps(self, start: int) -> Iterator[Step]:
        """Yield step `start` and all that follow."""
        ...

    def evaluate(self) -> Metrics:
        """Return the figures of the model as it is now. Collective; empty where there is nothing to evaluate."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what else the summary should hold, at the end of the stage (rank 0)."""
        ...


@dataclass(frozen=True)
class Stage:
    """One training stage: a job writes it, every worker runs it, its checkpoints record its recipe and runtime.

    Picklable; paths are absolute or URLs.
    """

    name: str  # "<run>/<stage>"
    storage: str  # root of everything that is written
    recipe: Recipe
    schedule: Callable[[int], Schedule]  # from the number of steps
    steps: int = 0  # 0 = not known before the data is there
    source: Callable[["Learner"], Feed] | None = None  # opened by every worker; None = likewise
    runtime: Runtime = field(default_factory=Runtime)
    fresh: bool = False  # a child with a fresh optimizer whose vectors and scalars stay fixed (RL)

    @property
    def folder(self) -> str:
        """Where its checkpoints and metrics go."""
        return paths.join(self.storage, "runs", self.name)

    @property
    def tokenizer(self) -> str:
        """The folder of its tokenizer: its parent's, or the run's."""
        return paths.join(self.parent or paths.parent(self.folder), "tokenizer")

    @property
    def parent(self) -> str | None:
        """The checkpoint that the stage starts from, absolute or a URL; None = freshly drawn weights."""
        return None if self.recipe.parent is None else paths.under(self.storage, self.recipe.parent)


class Learner(NamedTuple):
    """One worker's model and what it needs to be trained."""

    stage: Stage
    model: Model
    tokenizer: Tokenizer
    device: torch.device


def finished(folder: str, recipe: Recipe) -> dict[str, Any] | None:
    """Return the summary of a finished stage, or None where it is not finished.

    Raises:
        ValueError: The folder holds a stage of another recipe.
    """
    last = checkpoint.latest(folder)
    if last is None:
        return None
    meta = checkpoint.read_meta(last)
    check_recipe(folder, meta.recipe, recipe)
    summary = summary_of(last)
    if not summary or meta.step < summary.get("steps", 0):  # its last checkpoint was damaged since
        return None
    print(f"finished already: {last}")
    return summary


def summary_of(path: str) -> dict[str, Any]:
    """Return the summary of the stage that a checkpoint belongs to; empty for a checkpoint that stands alone."""
    file = paths.join(paths.parent(path), "summary.json")
    return paths.read_json(file) if paths.exists(file) else {}


def check_recipe(folder: str, there: Recipe, now: Recipe) -> None:
    """Raise ValueError where a stage on the storage has another recipe than is asked for now."""
    if different := differences(there, now):
        raise ValueError(
            f"{folder} has another recipe ({', '.join(different)}); choose another --run or remove that folder"
        )


def run(stage: Stage, report: Report) -> dict[str, Any]:
    """Train a stage from its latest checkpoint, or from its start, to its end; return its summary.

    Every worker calls it. Killed at any moment and called again, it ends in the same weights.
    """
    device = default_device()
    torch.manual_seed(stage.recipe.seed)
    model, optimizer = _start(stage, device)
    learner = Learner(stage, model, Tokenizer.load(stage.tokenizer), device)
    assert stage.source is not None
    around = _Around(learner, optimizer, stage.source(learner), report)
    hooks = [
        around.log_step,
        every(stage.runtime.eval_every, stage.steps, around.evaluate),
        every(stage.runtime.save_every, stage.steps, around.save),
    ]
    train(
        model,
        optimizer,
        around.feed.steps(around.start),
        nll=around.feed.nll,
        steps=stage.steps,
        schedule=stage.schedule(stage.steps),
        hooks=hooks,
        start=around.start,
    )
    return around.close()


def _start(stage: Stage, device: torch.device) -> tuple[Model, Optimizer]:
    """Build the model and the optimizer as the stage begins: freshly drawn, or its parent's weights and momenta."""
    recipe = stage.recipe
    if stage.parent is None:
        model = registry.build(recipe.model)
        model.init_weights(recipe.seed)
        model.place(device, compute_dtype(device))
    else:
        model, _ = checkpoint.load_model(stage.parent, device)
    if stage.fresh:
        # Vectors and scalars each move the whole policy at once, at rates made for pretraining: in one step they
        # would change it more than all matrices together.
        for p in model.parameters():
            p.requires_grad_(p.dim() == 2 and min(p.shape) > 1)
    optimizer = build_optimizer(model, lr_scale=recipe.lr_scale, weight_decay=recipe.weight_decay)
    if stage.parent is not None and not stage.fresh:
        checkpoint.verify(stage.parent)
        checkpoint.load_optimizer(stage.parent, optimizer)
    return model.train(), optimizer


class _Around:
    """The hooks of one worker, and what they share."""

    def __init__(self, learner: Learner, optimizer: Optimizer, feed: Feed, report: Report) -> None:
        self.feed = feed
        self._provenance = provenance.record(learner.stage.folder) if dist.world().rank == 0 else None
        self._stage, self._model, self._optimizer, self._learner = learner.stage, learner.model, optimizer, learner
        self._report, self._schedule = report, learner.stage.schedule(learner.stage.steps)
        self.start, spent_s, self._latest = self._resume()
        self._began = time.monotonic() - spent_s
        self._rank, self._size = dist.world()
        self._log = self._open_log() if self._rank == 0 else None
        self._clock = _Clock(feed.tokens_per_step, learner)
        self._throttle = Throttle(LOG_EVERY_S)

    def _resume(self) -> tuple[int, float, Metrics]:
        """Load the newest checkpoint that is as it was written; return its step, the seconds spent, its metrics."""
        stage = self._stage
        last = checkpoint.latest_verified(stage.folder)
        if last is None:
            return 0, 0.0, {}
        meta = checkpoint.read_meta(last)
        check_recipe(stage.folder, meta.recipe, stage.recipe)
        checkpoint.load_weights(last, self._model)
        checkpoint.load_optimizer(last, self._optimizer)
        if dist.world().rank == 0:
            print(f"{stage.name}: resumes at step {meta.step} of {stage.steps}", flush=True)
        return meta.step, meta.wall_s, meta.metrics

    def _open_log(self) -> MetricsLog:
        stage = self._stage
        settings = asdict(stage.recipe) | asdict(stage.runtime)
        return MetricsLog(stage.folder, start=self.start, name=stage.name, settings=settings, wandb=stage.runtime.wandb)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def log_step(self, number: int, loss: Tensor, step: Step) -> None:
        if self._log is None:
            return
        synchronize(self._learner.device)
        row = {"step": number, "loss": loss.item(), "lr": rate(self._schedule, number - 1, step)}
        row |= {**step.metrics, **self._clock.tick(), "t": self._seconds()}
        self._log.write(row)
        if self._throttle.due(force=number == self._stage.steps):
            self._report(row)

    def evaluate(self, number: int, loss: Tensor, step: Step) -> None:
        self._model.eval()
        metrics = self.feed.evaluate()
        self._model.train()
        self._clock.restart()
        self._latest.update(metrics)
        if self._log is not None and metrics:
            row = {"step": number, **metrics, "t": self._seconds()}
            self._log.write(row)
            self._report(row)

    def save(self, number: int, loss: Tensor, step: Step) -> None:
        stage = self._stage
        runtime = replace(stage.runtime, workers=self._size)
        meta = Meta(number, stage.recipe, runtime, metrics=dict(self._latest), wall_s=self._seconds())
        if self._log is not None:
            self._log.flush()
        keep, tokenizer = stage.runtime.keep, self._learner.tokenizer
        checkpoint.save_checkpoint(stage.folder, self._model, self._optimizer, tokenizer, meta, keep)
        self._clock.restart()

    def close(self) -> dict[str, Any]:
        """Write and return the summary (rank 0; empty on the others)."""
        if self._log is None:
            return {}
        self._log.close()
        stage, device = self._stage, self._learner.device
        summary = {
            "steps": stage.steps,
            "tokens": stage.steps * self.feed.tokens_per_step,
            "wall_s": self._seconds(),
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


class _Clock:
    """Tokens per second and MFU of the step just done, evaluation and saving left out."""

    def __init__(self, tokens_per_step: int, learner: Learner) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_token, self._peak = learner.model.flops_per_token(), peak_flops(learner.device)
        self._last = time.monotonic()

    def tick(self) -> Metrics:
        now = time.monotonic()
        rate = self._tokens_per_step / max(now - self._last, 1e-9)
        self._last = now
        if not self._tokens_per_step:
            return {}
        mfu = flops.mfu(rate, self._flops_per_token, self._peak, dist.world().size)
        return {"tok_per_s": round(rate, 1), **({} if mfu is None else {"mfu": round(mfu, 4)})}

    def restart(self) -> None:
        self._last = time.monotonic()

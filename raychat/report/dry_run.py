"""What a training stage will take, counted from its recipe before anything is read or started."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from raychat.device import peak_flops_of
from raychat.engine.limit import measure_speed
from raychat.model import registry
from raychat.model.base import AdamW, Model, Muon
from raychat.optim import rates_of
from raychat.recipe import Recipe, Runtime
from raychat.report.figures import LIST_PRICES, cost
from raychat.report.markdown import table_text
from raychat.report.tables import Table, dollars, duration, number
from raychat.train.finished import finished
from raychat.train.memory import USABLE, StepBytes, device_rows, rows_that_fit, step_bytes
from raychat.train.stage import Stage

GIB = 2**30
GPUS = {"H100": 80 * GIB, "A100": 80 * GIB, "RTX 4090": 24 * GIB}  # bytes of memory
CPU = "this CPU"
UTILISATION = 0.4  # of the peak: an assumption
NUM_WORKERS = (1, 2, 4, 8)  # whose micro-batches are shown, besides the number that was asked for
NAMES = {
    "wte": "embeddings",
    "wpe": "positions",
    "value_embeds": "value embeddings",
    "blocks": "matrices",
    "lm_head": "head",
}


class Group(NamedTuple):
    """Parameters that are updated alike."""

    name: str
    num_params: int
    optimizer: str
    lr: float  # peak


class Estimate(NamedTuple):
    """A stage on one kind of device."""

    peak_flops: float  # of one device
    rows: dict[int, int]  # of a worker's largest micro-batch, by the number of workers
    step: StepBytes
    memory: int | None  # bytes of a device; None = not looked at
    step_s: float
    wall_s: float | None  # None = the number of steps is unknown
    cost: float | None  # US dollars


class Figures(NamedTuple):
    """What a stage takes."""

    recipe: Recipe
    groups: list[Group]
    steps: int | None  # None = one pass over data that is not read here
    tokens: int | None  # of all steps
    flops_per_token: int
    num_workers: int
    devices: dict[str, Estimate]


def show(stage: Stage, num_workers: int, data: str, price_per_hour: float | None = None) -> dict[str, Any]:
    """Print what a stage takes as `count` says, and return it.

    Args:
        num_workers: 0 = in this process.
        data: what it is trained on.

    Raises:
        ValueError: The stage's folder holds a stage of another recipe.
    """
    finished(stage.folder, stage.recipe)
    figures = count(stage.recipe, stage.runtime, max(1, num_workers), price_per_hour)
    print("\n\n".join([f"# {stage.name}", f"Data: {data}", *map(table_text, tables_of(figures))]), end="\n\n")
    return figures._asdict()


def count(recipe: Recipe, runtime: Runtime, num_workers: int, price_per_hour: float | None = None) -> Figures:
    """Count what a stage takes.

    Args:
        price_per_hour: US dollars, of all machines together; None = the list price of each device that has one.
    """
    with torch.device("meta"):
        model = registry.build(recipe.model)
    step_tokens = recipe.rows_per_step * recipe.sequence_len
    groups, flops_per_token, devices = groups_of(model, recipe), model.flops_per_token(), {}
    for device in (*GPUS, CPU):
        dtype = torch.float32 if device == CPU else torch.bfloat16
        model = model.place(torch.device("meta"), dtype)
        counts = sorted({*NUM_WORKERS, num_workers})
        rows = {workers: rows_of(model, device, workers, recipe.rows_per_step, runtime) for workers in counts}
        peak = measured_flops() if device == CPU else peak_flops_of(device)
        assert peak is not None
        step_s = step_tokens * flops_per_token / (UTILISATION * peak * (1 if device == CPU else num_workers))
        wall_s = None if recipe.steps is None else recipe.steps * step_s
        used = {"wall_s": wall_s, "eval_wall_s": None, "workers": num_workers, "device": device}
        paid = None if wall_s is None else cost(used, price_per_hour)
        step = step_bytes(model, rows[num_workers], num_workers, dtype, runtime.activation_budget)
        devices[device] = Estimate(peak, rows, step, GPUS.get(device), step_s, wall_s, paid)
    tokens = None if recipe.steps is None else recipe.steps * step_tokens
    return Figures(recipe, groups, recipe.steps, tokens, flops_per_token, num_workers, devices)


def groups_of(model: Model, recipe: Recipe) -> list[Group]:
    """Return a model's parameters by how they are updated, the largest group first."""
    rates = rates_of(model, recipe.adamw)
    counts: dict[tuple[str, AdamW | Muon], int] = defaultdict(int)
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        of_part = NAMES.get(part) if p.dim() > 1 else None
        counts[of_part or f"scalars ({part})", rates[name].scaled(recipe.lr_scale)] += p.numel()
    groups = [
        Group(name, num_params, type(rate).__name__, recipe.lr * rate.lr) for (name, rate), num_params in counts.items()
    ]
    return sorted(groups, key=lambda group: -group.num_params)


def rows_of(model: Model, device: str, num_workers: int, rows_per_step: int, runtime: Runtime) -> int:
    """Return the rows of a worker's largest micro-batch."""
    if device == CPU:
        rows = device_rows(model, torch.device("cpu"), num_workers, torch.float32)
    else:
        rows = rows_that_fit(model, GPUS[device], num_workers, torch.bfloat16, runtime.activation_budget)
    return min(runtime.device_rows or rows, share(rows_per_step, num_workers))


def share(count: int, parts: int) -> int:
    """Return the largest share of `count` things in `parts`: the quotient, rounded up."""
    return -(-count // parts)


@functools.cache  # once for all stages
def measured_flops() -> float:
    """Return what this process reaches in a product of large matrices, in FLOP/s."""
    return measure_speed(torch.device("cpu"), torch.float32).flops_per_s


def tables_of(figures: Figures) -> list[Table]:
    """Return the figures as tables."""
    rows = [[g.name, f"{g.num_params:,}", g.optimizer, f"{g.lr:.4g}"] for g in figures.groups]
    parameters = Table("Parameters", ["group", "parameters", "updated by", "peak learning rate"], rows)
    return [_stage(figures), parameters, _devices(figures), _micro_batches(figures)]


def _stage(figures: Figures) -> Table:
    recipe = figures.recipe
    sizes = ("n_layer", "n_embd", "n_head", "sequence_len", "vocab_size", "window_pattern")
    rows = {
        "model": ", ".join(f"{key} {recipe.model[key]}" for key in sizes if key in recipe.model),
        "parameters": f"{sum(group.num_params for group in figures.groups):,}",
        "steps": "one pass over the data" if figures.steps is None else f"{figures.steps:,}",
        "tokens": number(figures.tokens, ","),
        "tokens of a step": f"{recipe.rows_per_step * recipe.sequence_len:,} in {recipe.rows_per_step:,} rows",
        "FLOPs per token": f"{figures.flops_per_token:.3e}",
        "FLOPs": number(figures.tokens and figures.tokens * figures.flops_per_token, ".3e"),
        "learning rates times": f"{recipe.lr_scale:.4g} where they grow with the batch, {recipe.lr:g} at the peak",
        "weight decay": f"{recipe.weight_decay:.4g}, of Muon, at the first step",
    }
    if recipe.adamw is not None:
        rows |= {"weight decay": f"{recipe.adamw['weight_decay']:.4g}, of matrices and embeddings"}
    return Table("Stage", ["", ""], [[name, text] for name, text in rows.items()])


def _devices(figures: Figures) -> Table:
    def row(title: str, cell: Callable[[Estimate], str]) -> list[str]:
        return [title, *(cell(estimate) for estimate in figures.devices.values())]

    kinds = [
        row(f"{kind}, GiB", lambda e, i=i: f"{e.step[i] / GIB:.2f}")  # type: ignore[misc]
        for i, kind in enumerate(StepBytes._fields)
    ]
    rows = [
        row("peak, TFLOP/s", lambda e: f"{e.peak_flops / 1e12:.3g}"),
        row("rows of a micro-batch", lambda e: str(e.rows[figures.num_workers])),
        *kinds,
        row("sum, GiB", lambda e: f"{sum(e.step) / GIB:.2f}"),
        row("memory, GiB", _memory),
        row("time of a step", lambda e: f"{e.step_s:.3g} s"),
        row("time", lambda e: duration(e.wall_s)),
        row("cost", lambda e: dollars(e.cost)),
    ]
    prices = ", ".join(f"{name} ${price:.2f}" for name, price in LIST_PRICES.items())
    note = (
        f"Time of training alone, if it reaches {UTILISATION:.0%} of the peak. That share is an assumption; a run logs "
        "its own (mfu). The peak of a GPU is its data sheet's in bf16. The CPU's was measured now, in a product of "
        "large fp32 matrices, and its workers share it. Cost: list prices of a device and hour "
        f"({prices}), or the price given."
    )
    title = f"Each device, with {figures.num_workers} worker{'s' if figures.num_workers > 1 else ''}"
    return Table(title, ["", *figures.devices], rows, note)


def _memory(estimate: Estimate) -> str:
    size = estimate.memory
    fits = size is None or sum(estimate.step) <= USABLE * size
    return number(size and size / GIB, ".0f") + ("" if fits else ": too small")


def _micro_batches(figures: Figures) -> Table:
    def cell(estimate: Estimate, workers: int) -> str:
        rows = estimate.rows[workers]
        return f"{share(share(figures.recipe.rows_per_step, workers), rows)} x {rows}"

    devices = figures.devices.values()
    rows = [[str(n), *(cell(estimate, n) for estimate in devices)] for n in figures.devices[CPU].rows]
    return Table("Micro-batches x rows of a step on one worker", ["workers", *figures.devices], rows)

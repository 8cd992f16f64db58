"""The two records of a checkpoint: the recipe, which defines the weights, and the runtime, which does not.

A stage resumes only with the recipe it was begun with, and with any runtime. A child stage inherits from its parent's
recipe alone.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from raychat.settings import above, at_least, at_most


@dataclass(frozen=True)
class Recipe:
    """What defines the weights of a stage: plain values, written to `meta.json` as they are."""

    model: dict[str, Any]  # architecture: class and sizes (`raychat.model.registry`)
    batch_tokens: int  # of an optimizer step, all workers together
    lr_scale: float  # times every learning rate that grows with the batch
    weight_decay: float = 0.0  # Muon's, before the schedule
    adamw: dict[str, float] | None = None  # lr, beta2 and weight_decay of AdamW; None = the model's own
    schedule: dict[str, float] | None = None  # warmup_steps and final of a cosine; None = the stage's own schedule
    lr: float = 1.0  # peak of the schedule, times the rates of the base stage
    steps: int | None = None  # optimizer steps; None = one pass over the data
    seed: int = 0  # of the initial weights, or of the order of the data
    parent: str | None = None  # checkpoint that the stage starts from, relative to the storage where it lies there
    tokenizer: str | None = None  # its fingerprint; None = unknown
    data: tuple[str, ...] = ()  # corpora that the base stage was trained on
    num_shards: int | None = None  # of them; None = as many as the run needs
    tasks: tuple[str, ...] = ()  # that mid, SFT and RL train on
    task_data: str | None = None  # where the tasks' data is read from
    inputs: str | None = None  # fingerprint of the token shards; None = unknown
    sampling: dict[str, Any] | None = None  # RL: how questions are asked and answers sampled

    @property
    def sequence_len(self) -> int:
        """The context in tokens."""
        return int(self.model["sequence_len"])

    @property
    def rows_per_step(self) -> int:
        """Rows of `sequence_len` tokens in an optimizer step, at least one."""
        return max(1, self.batch_tokens // self.sequence_len)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of a recipe; fields of a newer version are refused."""
        known = {field.name for field in fields(cls)}
        if unknown := values.keys() - known:
            raise ValueError(f"the recipe has unknown fields {', '.join(sorted(unknown))}: a newer raychat wrote it")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Runtime:
    """How a stage runs. It may change whenever the stage is resumed."""

    device_rows: int | None = None  # rows of a micro-batch on one device; None = by the device's memory
    eval_every: int = 0  # steps between evaluations; 0 = at the end only
    save_every: int = 0  # steps between checkpoints; 0 = at the end only
    keep: int = 2  # newest checkpoints that stay, with the best; 0 = all
    wandb: bool = False  # log to Weights & Biases
    tensorboard: bool = False  # log to TensorBoard
    compile: bool | None = None  # compile the model; None = where it pays
    activation_budget: float = 1.0  # share of the activations that a compiled step keeps
    fp8: bool = False  # multiply in 8 bits in training
    profile: bool = False  # write a trace of a few steps
    workers: int | None = None  # data-parallel workers that wrote the checkpoint

    def __post_init__(self) -> None:
        at_least(self, device_rows=1, eval_every=0, save_every=0, keep=0)
        above(self, activation_budget=0)
        at_most(self, activation_budget=1)

    @classmethod
    def of(cls, job: object) -> Self:
        """Return the settings of a job that are fields of a runtime."""
        return cls(**{field.name: getattr(job, field.name) for field in fields(cls) if hasattr(job, field.name)})


def differences(there: Recipe, now: Recipe) -> list[str]:
    """Name the fields in which two recipes differ, with both values, without those that one of them does not know."""
    found = []
    for name, old in asdict(there).items():
        new = getattr(now, name)
        if name in _MAY_BE_UNKNOWN and not (old and new):
            continue
        if name == "inputs" and old.startswith(BY_CONTENT) != new.startswith(BY_CONTENT):
            continue  # an older raychat named documents by the times of their files
        if name == "parent" and old and new and (old.endswith(f"/{new}") or new.endswith(f"/{old}")):
            continue  # relative to the storage, and with it
        if name in ("model", "adamw", "schedule", "sampling") and old and new:
            changed = [key for key in old | new if old.get(key) != new.get(key)]
            found += [f"{key}: there {old.get(key)!r}, now {new.get(key)!r}" for key in changed]
        elif old != new:
            found.append(f"{name}: there {old!r}, now {new!r}")
    return found


BY_CONTENT = "documents-"  # begins the fingerprint of documents that are named by what they hold
SAMPLING = ("questions_per_step", "samples", "max_new_tokens", "temperature", "top_k")  # keys of `Recipe.sampling`
_MAY_BE_UNKNOWN = ("inputs", "tokenizer", "data", "batch_tokens")  # to checkpoints of format 1, or before data is read


def from_format_1(model: dict[str, Any], settings: dict[str, Any], parent: str | None) -> tuple[Recipe, Runtime]:
    """Read the records of a checkpoint of format 1, which kept all settings of the job that wrote it in one record."""
    own = {field.name for field in fields(Recipe)}
    values = {"batch_tokens": 0, "lr_scale": 1.0, **{key: settings[key] for key in own if key in settings}}
    values |= {"model": model, "parent": parent}
    if "task" in settings:  # of reinforcement
        values |= {"tasks": [settings["task"]], "sampling": {key: settings[key] for key in SAMPLING}}
    runtime = {key: settings[key] for key in ("device_rows", "eval_every", "save_every") if key in settings}
    return Recipe.from_json(values), Runtime(**runtime)

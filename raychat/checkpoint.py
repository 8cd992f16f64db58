"""Checkpoints are values: a folder `step_000123` with

    model.safetensors               weights by parameter name
    optimizer_000.safetensors ...   one file a worker, tensors named "<parameter>/<slot>/<first row>"
    meta.json                       step, recipe, runtime, metrics ...; it makes the checkpoint complete
    tokenizer/                      so that the folder alone is enough to talk to the model

Any number of workers reads what any number has written. Nothing is pickled.
"""

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from raychat import dist, paths
from raychat.device import compute_dtype
from raychat.model.base import Model
from raychat.model.registry import MODELS, build
from raychat.optim import Optimizer
from raychat.recipe import Recipe, Runtime, from_format_1
from raychat.tokenizer import Tokenizer

FORMAT = 2
_NAME = re.compile(r"step_(\d{6,})")


@dataclasses.dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a checkpoint."""

    step: int
    recipe: Recipe
    runtime: Runtime = Runtime()  # noqa: RUF009 (frozen)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # latest evaluation; skipped steps, rewinds
    wall_s: float = 0.0  # spent on the stage so far
    commit: str | None = None  # of the code that wrote it


def all_in(folder: str) -> list[str]:
    """Return the complete checkpoints of a stage, oldest first."""
    found = [(int(m[1]), n) for n in paths.names(folder) if (m := _NAME.fullmatch(n))]
    candidates = [paths.join(folder, n) for _, n in sorted(found)]
    return [c for c in candidates if paths.exists(paths.join(c, paths.LAST_FILE))]


def latest(folder: str) -> str | None:
    """Return the newest complete checkpoint of a stage, or None."""
    return next(reversed(all_in(folder)), None)


def latest_of(run_folder: str, stages: Sequence[str]) -> str:
    """Return the newest checkpoint of the first of these stages that a run has. Raises ValueError when it has none."""
    for stage in stages:
        if (path := latest(paths.join(run_folder, stage))) is not None:
            return path
    wanted = " or ".join(stages)
    raise ValueError(f"no checkpoint of {wanted} in {run_folder}; train that first (jobs/), or name another --run")


def save_checkpoint(
    folder: str, model: Model, optimizer: Optimizer | None, tokenizer: Tokenizer, meta: Meta, keep: int = 2
) -> str:
    """Write `folder`/step_<step>; every worker must call it. Return its path.

    Args:
        keep: newest checkpoints in `folder` that stay; 0 = all.

    Raises:
        ValueError: the workers do not see one storage (each wrote to a disk of its own).
    """
    rank, size = dist.world()
    final = paths.join(folder, f"step_{meta.step:06d}")
    # A local folder is filled under a temporary name and renamed; an object store gets meta.json last.
    target = paths.join(folder, f".tmp-step_{meta.step:06d}") if paths.is_local(folder) else final
    if rank == 0:
        paths.remove(target)
    dist.barrier()
    if optimizer is not None:
        paths.write_bytes(paths.join(target, f"optimizer_{rank:03d}.safetensors"), save(_on_cpu(optimizer.state())))
    if rank == 0:
        paths.write_bytes(paths.join(target, "model.safetensors"), save(_on_cpu(model.state_dict())))
        tokenizer.save(paths.join(target, "tokenizer"))
    dist.barrier()
    if rank == 0:
        shards = sum(n.startswith("optimizer_") for n in paths.names(target))
        if optimizer is not None and shards != size:
            raise ValueError(
                f"{target} holds {shards} of {size} workers' optimizer state: the workers do not share this storage; "
                "set --cluster.storage-path to a folder or bucket that all of them see"
            )
        record = {"format": FORMAT, **dataclasses.asdict(dataclasses.replace(meta, commit=commit()))}
        paths.write_json(paths.join(target, paths.LAST_FILE), record)
        if target != final:
            paths.remove(final)
            paths.rename(target, final)
        for old in all_in(folder)[:-keep] if keep else []:
            paths.remove(old)
    dist.barrier()
    return final


def read_meta(path: str) -> Meta:
    """Return a checkpoint's meta.json, of this format or of format 1.

    Raises:
        ValueError: `path` is not a checkpoint, or not of a format that this version reads.
    """
    file = paths.join(path, paths.LAST_FILE)
    try:
        meta = paths.read_json(file)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not a checkpoint: it has no {paths.LAST_FILE}; expected one such as runs/tiny/sft/step_000100"
        ) from None
    number = meta.get("format") if isinstance(meta, dict) else None
    try:
        if number == 1:
            recipe, runtime = from_format_1(meta["model"], meta["settings"], meta.get("parent"))
            runtime = dataclasses.replace(runtime, workers=meta.get("workers"))
        elif number == FORMAT:
            recipe, runtime = Recipe.from_json(meta["recipe"]), Runtime(**meta["runtime"])
        else:
            raise ValueError(f"format {number!r}")
        if recipe.model.get("class") not in MODELS:
            raise ValueError(f"model class {recipe.model.get('class')!r}")
        rest = {key: meta[key] for key in ("metrics", "wall_s", "commit") if key in meta}
        return Meta(meta["step"], recipe, runtime, **rest)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not of raychat's checkpoint format {FORMAT} or 1: {error!r}") from error


def load_model(path: str, device: torch.device) -> tuple[Model, Meta]:
    """Build the model of a checkpoint, placed on `device`; return it with its meta.

    Raises:
        ValueError: `path` is not a checkpoint, or its weights do not fit the architecture that meta.json names.
    """
    meta = read_meta(path)
    model = build(meta.recipe.model)
    load_weights(path, model)
    return model.place(device, compute_dtype(device)), meta


def load_weights(path: str, model: Model) -> None:
    """Copy a checkpoint's weights into a model of the same architecture. Raises ValueError on a mismatch."""
    file = paths.local(paths.join(path, "model.safetensors"))
    try:
        with safe_open(file, framework="pt") as tensors:
            expected, got = model.state_dict(), {k: tensors.get_tensor(k) for k in tensors.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    shapes = [{k: tuple(t.shape) for k, t in tensors.items()} for tensors in (expected, got)]
    if shapes[0] != shapes[1]:
        different = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))[:5]
        details = "; ".join(f"{k}: got {shapes[1].get(k)}, expected {shapes[0].get(k)}" for k in different)
        raise ValueError(f"{file} does not fit the architecture: {details}")
    model.load_state_dict(got)


def load_optimizer(path: str, optimizer: Optimizer) -> None:
    """Give an optimizer the state that a checkpoint holds, whatever number of workers wrote it."""
    optimizer.load_state(_OptimizerShards(path))


class _OptimizerShards(Mapping[str, Tensor]):
    """All workers' optimizer tensors of a checkpoint, each read when asked for."""

    def __init__(self, path: str) -> None:
        files = [n for n in paths.names(path) if n.startswith("optimizer_")]
        if not files:
            raise ValueError(f"{path} holds no optimizer state")
        opened = [safe_open(paths.local(paths.join(path, n)), framework="pt") for n in files]
        self._file = {key: f for f in opened for key in f.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        return self._file[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def load_tokenizer(path: str) -> Tokenizer:
    """Load the tokenizer that lies beside a checkpoint's weights."""
    return Tokenizer.load(paths.join(path, "tokenizer"))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.detach().cpu().contiguous() for k, t in tensors.items()}


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the git commit of this code, or None where there is none to be asked."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

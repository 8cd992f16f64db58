"""A series: runs under one name that differ in depth or another setting, and what its rungs measured.

runs/<name>/series/series.json names the rungs; each is an ordinary run of the storage, `runs/<name>-d4`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from raychat import paths
from raychat.model import registry
from raychat.report.figures import json_of
from raychat.train.scaling import num_scaling_params


class Rung(NamedTuple):
    """One run of a series."""

    run: str
    label: str  # what sets it apart: depth and other settings, without the seed
    seed: int = 0
    budget: float | None = None  # FLOPs that were asked for; None = as long as base_train takes


class Measured(NamedTuple):
    """What a rung that is finished has measured."""

    rung: Rung
    params: int  # scaling parameters: the blocks' matrices and lm_head
    tokens: int
    flops: float  # of training
    val_bpb: float
    core: float | None
    wall_s: float  # of training


class Series(NamedTuple):
    """A series as the storage has it."""

    name: str
    settings: dict[str, Any]  # of the job, without its name
    measured: Sequence[Measured]
    missing: Sequence[Rung]  # that are not finished


def save(storage: str, name: str, settings: dict[str, Any], rungs: Sequence[Rung]) -> None:
    """Write which runs make up a series."""
    paths.write_json(_file(storage, name), {"settings": settings, "rungs": [rung._asdict() for rung in rungs]})


def exists(storage: str, name: str) -> bool:
    """Tell whether the storage has a series of this name."""
    return paths.exists(_file(storage, name))


def load(storage: str, name: str) -> Series:
    """Read a series and what its rungs have measured so far."""
    found = paths.read_json(_file(storage, name))
    rungs = [Rung(**rung) for rung in found["rungs"]]
    measured = [m for rung in rungs if (m := measure(storage, rung))]
    done = {m.rung for m in measured}
    return Series(name, found["settings"], measured, [rung for rung in rungs if rung not in done])


def measure(storage: str, rung: Rung) -> Measured | None:
    """Read what a rung has measured; None where it is not finished."""
    folder = paths.join(storage, "runs", rung.run, "base")
    summary, evaluation = json_of(folder, "summary.json"), json_of(folder, "eval.json")
    if "val_bpb" not in summary or not evaluation:
        return None
    model, tokens = summary["recipe"]["model"], summary["tokens"]
    layers, width = model["n_layer"], model["n_embd"]
    return Measured(
        rung,
        params=num_scaling_params(layers, width, width // model["n_head"], model["vocab_size"]),
        tokens=tokens,
        flops=float(tokens * flops_per_token(model)),
        val_bpb=evaluation.get("val_bpb", summary["val_bpb"]),
        core=evaluation.get("core"),
        wall_s=summary["wall_s"],
    )


def flops_per_token(architecture: dict[str, Any]) -> int:
    """Return the FLOPs of training a model on one token."""
    with torch.device("meta"):
        return registry.build(architecture).flops_per_token()


def folder(storage: str, name: str) -> str:
    """Return where the files of a series lie."""
    return paths.join(storage, "runs", name, "series")


def _file(storage: str, name: str) -> str:
    return paths.join(folder(storage, name), "series.json")

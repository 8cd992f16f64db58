"""Read what a checkpoint holds: its model, the optimizer's state, its tokenizer."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raychat import paths
from raychat.checkpoint import checksums
from raychat.checkpoint.checksums import Checksum
from raychat.checkpoint.meta import TOKENIZER, WEIGHTS, Meta, read_meta
from raychat.device import compute_dtype
from raychat.model.base import Model
from raychat.model.registry import build
from raychat.optim import Optimizer
from raychat.tokenizer import Tokenizer

_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


def load_model(path: str, device: torch.device) -> tuple[Model, Meta]:
    """Build the model of a checkpoint, placed on `device`; return it with its meta.

    Raises:
        ValueError: `path` is not a checkpoint, its weights are damaged, or they do not fit the architecture.
    """
    meta = read_meta(path)
    _check_file(path, WEIGHTS, meta.files)
    model = build(meta.recipe.model)
    load_weights(path, model)
    return model.place(device, compute_dtype(device)), meta


def _check_file(path: str, name: str, files: dict[str, Checksum]) -> None:
    """Read a file of a checkpoint in full and compare it with its record, if there is one. Raises Damaged."""
    checksums.check_content(path, {name: files[name]} if name in files else {})


def load_weights(path: str, model: Model) -> None:
    """Copy a checkpoint's weights into a model of its architecture, or of a shorter context. Raises ValueError."""
    file = paths.join(path, WEIGHTS)
    with _open(file) as tensors:
        expected, got = model.state_dict(), {k: tensors.get_tensor(k) for k in tensors.keys()}  # noqa: SIM118
    got = model.cropped(got)
    shapes = [{k: tuple(t.shape) for k, t in tensors.items()} for tensors in (expected, got)]
    if shapes[0] != shapes[1]:
        different = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))[:5]
        details = "; ".join(f"{k}: got {shapes[1].get(k)}, expected {shapes[0].get(k)}" for k in different)
        raise ValueError(f"{file} does not fit the architecture: {details}")
    model.load_state_dict(got)


def load_optimizer(path: str, optimizer: Optimizer) -> None:
    """Give an optimizer the state that a checkpoint holds, whatever number of workers wrote it."""
    optimizer.load_state(_OptimizerShards(path))


def has_optimizer(path: str) -> bool:
    """Tell whether a checkpoint was written with an optimizer's state; one that was imported has none."""
    files = read_meta(path).files  # empty = older than this record
    return not files or any(name.startswith("optimizer_") for name in files)


class _OptimizerShards(Mapping[str, Tensor]):
    """All workers' optimizer tensors of a checkpoint. Of a file only the header is read before one is asked for."""

    def __init__(self, path: str) -> None:
        files = [paths.join(path, n) for n in paths.names(path) if n.startswith("optimizer_")]
        if not files:
            raise ValueError(f"{path} holds no optimizer state")
        self._file = {key: file for file in files for key in _keys(file)}
        self._open = cache(_open)

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._open(self._file[key]).get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def _open(file: str) -> Any:
    """Open a safetensors file of any storage. Raises ValueError where it is torn or missing."""
    try:
        return safe_open(paths.local(file), framework="pt")
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def _keys(file: str) -> list[str]:
    """Return the names of the tensors in a safetensors file: 8 bytes of length, then a header of JSON.

    Source: https://huggingface.co/docs/safetensors, Format.
    """
    try:
        stop = 8 + min(int.from_bytes(paths.read_range(file, 0, 8), "little"), _MAX_HEADER)
        return [key for key in json.loads(paths.read_range(file, 8, stop)) if key != "__metadata__"]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def load_tokenizer(path: str) -> Tokenizer:
    """Load the tokenizer that lies beside a checkpoint's weights. Raises ValueError where it is damaged."""
    _check_file(path, TOKENIZER, read_meta(path).files)
    return Tokenizer.load(paths.join(path, paths.parent(TOKENIZER)))

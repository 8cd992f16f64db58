"""What a checkpoint of another project becomes before it is a run, and how its sizes and weights become a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raychat import paths
from raychat.model import registry
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

_MAX_SIZE = 2**20  # of width, vocabulary or context

Weights = Mapping[str, Tensor]


class Foreign(NamedTuple):
    """A model of another project, in memory or mapped from its file, with what is known of it."""

    model: Model
    tokenizer: Tokenizer
    step: int = 0  # 0 = unknown
    stage: str | None = None  # base, mid, sft or rl; None = unknown
    metrics: dict[str, float] = {}  # noqa: RUF012 (nobody changes it)


def read_config(file: str) -> dict[str, Any]:
    """Return what a JSON file says by name. Raises ValueError where it says something else, or is torn."""
    try:
        config = paths.read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; expected values by name")
    return config


def sizes_of(where: str, config: Any, names: Mapping[str, str]) -> dict[str, int]:
    """Return sizes of a foreign config by our names.

    Args:
        names: theirs of each of ours.

    Raises:
        ValueError: One is missing, or is no whole number from 1 to 2^20.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{where} holds a {type(config).__name__}; expected sizes by name")
    for theirs in names.values():
        size = config.get(theirs)
        if type(size) is not int or not 1 <= size <= _MAX_SIZE:
            raise ValueError(f"{where}: {theirs} is {size!r:.50}; expected a whole number from 1 to {_MAX_SIZE}")
    return {ours: config[theirs] for ours, theirs in names.items()}


def expect(where: str, config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError where a foreign config has another value than raychat's model; what it leaves out is as here."""
    for name, value in expected.items():
        if (got := config.get(name, value)) != value:
            raise ValueError(f"{where}: {name} is {got!r:.100}; raychat's model has {value!r}")


def fitted(where: str, vocab_size: int, tokenizer: Tokenizer) -> int:
    """Return the size of a model's vocabulary without the padding that its project added.

    Raises:
        ValueError: The tokenizer has more tokens than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{where} has a vocabulary of {vocab_size}, and its tokenizer {tokenizer.vocab_size} tokens; pass the "
            "right one: --tokenizer"
        )
    return tokenizer.vocab_size


def build(
    where: str, architecture: dict[str, Any], weights: Weights, named: Callable[[Weights, Model], dict[str, Tensor]]
) -> Model:
    """Build a model on the CPU around foreign weights; those that need no change stay where they are.

    Args:
        named: gives the weights the names, dtypes and padding that the model has.

    Raises:
        ValueError: The weights are not exactly those of the architecture; names them.
    """
    if architecture["n_layer"] > len(weights):
        raise ValueError(f"{where} says {architecture['n_layer']} layers, and has {len(weights)} weights")
    with torch.device("meta"):
        model = registry.build(architecture)
    try:
        model.load_state_dict(named(weights, model), assign=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return model.eval()

"""The models by name: the only place outside a model's own file that names its class."""

import dataclasses
from typing import Any

from raychat.model.base import Model
from raychat.model.gpt import GPT, GPTConfig
from raychat.model.gpt2 import GPT2, GPT2Config

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "GPT": (GPT, GPTConfig),
    "GPT2": (GPT2, GPT2Config),
}


def architecture_of(model: Model) -> dict[str, Any]:
    """Return a model's class and config as plain values, for `build`."""
    return {"class": type(model).__name__, **dataclasses.asdict(model.config)}


def architecture(name: str, **sizes: Any) -> dict[str, Any]:
    """Return the architecture of a model class with these sizes and the class's defaults for all others.

    Raises:
        ValueError: A size is unknown or impossible.
    """
    return {"class": name, **dataclasses.asdict(_config(name, sizes))}


def build(architecture: dict[str, Any]) -> Model:
    """Build the model of an architecture, its weights not drawn yet.

    Raises:
        ValueError: The class or a size is unknown.
    """
    sizes = dict(architecture)
    name = sizes.pop("class", None)
    return MODELS[name][0](_config(name, sizes)) if name in MODELS else _refuse(name)


def _config(name: str, sizes: dict[str, Any]) -> Any:
    if name not in MODELS:
        _refuse(name)
    config = MODELS[name][1]
    unknown = sizes.keys() - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise ValueError(f"{name} has no size {', '.join(sorted(unknown))}; it comes from another version of raychat")
    return config(**sizes)


def _refuse(name: Any) -> Any:
    raise ValueError(f"no model class is called {name!r}; expected one of {', '.join(MODELS)}")

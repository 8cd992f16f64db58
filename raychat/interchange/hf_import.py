"""GPT-2 and NanoChat of transformers: a folder of `save_pretrained`, or a model of the hub."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raychat import paths
from raychat.interchange import foreign
from raychat.interchange.foreign import Foreign, Weights
from raychat.interchange.tokenizers import read_tokenizer
from raychat.model import registry
from raychat.model.base import Model
from raychat.model.convert import gpt2_from_transformers, nanochat_from_transformers
from raychat.model.gpt import GPTConfig
from raychat.model.gpt2 import SIZES

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = ("*.safetensors", "*.json", "*.txt")  # nothing that could run


class _Kind(NamedTuple):
    """How one of transformers' model classes is read."""

    architecture: Callable[[str, dict[str, Any]], dict[str, Any]]  # from its config; says where it lies
    named: Callable[[Weights, Model], dict[str, Tensor]]


def download(name: str) -> str:
    """Fetch a model of the hub; return its folder. `gpt2` and the like stand for OpenAI's. HF_ENDPOINT is respected.

    Only safetensors, JSON and text are fetched.

    Raises:
        ValueError: The hub has no such model, or cannot be reached.
    """
    repo = f"openai-community/{name}" if name in SIZES else name
    folder = paths.join(paths.cache(), "hub", repo)
    try:
        return snapshot_download(
            repo, allow_patterns=list(_READ), local_dir=folder, endpoint=os.environ.get("HF_ENDPOINT") or None
        )
    except Exception as error:  # whatever the network raises
        raise ValueError(f"{repo} is no folder here, and could not be fetched from the hub: {error!r:.300}") from error


def read(folder: str, tokenizer: str | None = None) -> Foreign:
    """Read a model.

    Args:
        tokenizer: file or folder; None = the same folder.

    Raises:
        ValueError: It is of another architecture, or a file is missing; names what does not fit.
    """
    file = paths.join(folder, CONFIG)
    config = foreign.read_config(file)
    kind = str(config.get("model_type"))
    if kind not in _KINDS:
        raise ValueError(f"{file} has model_type {kind!r:.50}; raychat reads {', '.join(_KINDS)}")
    words = read_tokenizer(tokenizer or folder)
    architecture = _KINDS[kind].architecture(file, config)
    architecture["vocab_size"] = foreign.fitted(file, architecture["vocab_size"], words)
    return Foreign(foreign.build(folder, architecture, _weights(folder), _KINDS[kind].named), words)


def _gpt2(file: str, config: dict[str, Any]) -> dict[str, Any]:
    names = {name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    sizes = foreign.sizes_of(file, config, {"sequence_len": "n_positions", **names})
    expected = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "add_cross_attention": False,
    }
    foreign.expect(file, config, expected)
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ValueError(f"{file}: n_inner is {config['n_inner']!r:.50}; raychat's model has 4 n_embd")
    dropout = config.get("resid_pdrop", 0.1)
    if not isinstance(dropout, int | float):
        raise ValueError(f"{file}: resid_pdrop is {dropout!r:.50}; expected a number")
    return registry.architecture("GPT2", **sizes, dropout=float(dropout))


def _nanochat(file: str, config: dict[str, Any]) -> dict[str, Any]:
    names = {
        "sequence_len": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_kv_head": "num_key_value_heads",
        "n_embd": "hidden_size",
    }
    sizes = foreign.sizes_of(file, config, names)
    expected = {
        "hidden_act": "relu2",
        "intermediate_size": 4 * sizes["n_embd"],
        "attention_bias": False,
        "tie_word_embeddings": False,
        "head_dim": sizes["n_embd"] // sizes["n_head"],
        "rope_scaling": None,
    }
    foreign.expect(file, config, expected)
    softcap = config.get("final_logit_softcapping", 15.0)
    rotary = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}  # or an older file
    if not isinstance(rotary, dict) or rotary.get("rope_type", "default") != "default":
        raise ValueError(f"{file}: rope_parameters are {rotary!r:.100}; raychat's model has rope_type default")
    if not all(isinstance(value, int | float) for value in (rotary.get("rope_theta"), softcap)):
        raise ValueError(
            f"{file}: rope_theta and final_logit_softcapping are {rotary!r:.100}, {softcap!r:.50}, no numbers"
        )
    ours = dataclasses.replace(
        GPTConfig.october_2025(**sizes), rotary_base=float(rotary["rope_theta"]), softcap=float(softcap)
    )
    return {"class": "GPT", **dataclasses.asdict(ours)}


_KINDS = {"gpt2": _Kind(_gpt2, gpt2_from_transformers), "nanochat": _Kind(_nanochat, nanochat_from_transformers)}


def _weights(folder: str) -> dict[str, Tensor]:
    """Return the tensors of a folder's safetensors, one file or several with an index."""
    files = {_WEIGHTS}
    if not paths.exists(paths.join(folder, _WEIGHTS)):
        index = paths.join(folder, _INDEX)
        if not paths.exists(index):
            raise ValueError(f"{folder} has no {_WEIGHTS} and no {_INDEX}; raychat reads no other files of weights")
        named = foreign.read_config(index).get("weight_map")
        files = set(map(str, named.values())) if isinstance(named, dict) else set()
    weights: dict[str, Tensor] = {}
    for name in sorted(files):
        if paths.name(name) != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder}: {_INDEX} names {name!r:.100}; expected a safetensors file in the same folder")
        file = paths.join(folder, name)
        try:
            with safe_open(paths.local(file), framework="pt") as tensors:
                weights |= {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    return weights

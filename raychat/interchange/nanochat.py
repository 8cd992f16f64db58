"""nanochat's checkpoints: `model_<step>.pt` beside `meta_<step>.json`, and the tokenizer two folders above, in and out.

There are two generations. The first (October 2025) has neither value embeddings nor scalars of the residual stream; the
current one has all of GPTConfig's parts. Generations in between do not record their rotary base and are refused.
"""

import dataclasses
import io
import re
from typing import Any

import torch

from raychat import paths
from raychat.interchange import foreign, pickles
from raychat.interchange.foreign import Foreign
from raychat.interchange.tokenizers import read_tokenizer, write_tiktoken
from raychat.model import registry
from raychat.model.base import Model
from raychat.model.convert import nanochat_from_file, nanochat_to_file
from raychat.model.gpt import SIZES, GPTConfig
from raychat.tokenizer import Tokenizer

FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
_MODEL = re.compile(r"model_(\d+)\.pt")
# Weights that a generation has or has not: all, or none of them.
_CURRENT = ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda")


def models_in(folder: str) -> list[str]:
    """Return the names of the models in a folder, by step."""
    return sorted(filter(_MODEL.fullmatch, paths.names(folder)), key=_step)


def _step(file: str) -> int:
    found = _MODEL.fullmatch(paths.name(file))
    assert found is not None
    return int(found[1])


def read(path: str, tokenizer: str | None = None) -> Foreign:
    """Read a checkpoint.

    Args:
        path: `model_<step>.pt`, or a folder with some, of which the newest is taken.
        tokenizer: file or folder; None = `tokenizer` two folders above, as nanochat lays them out.

    Raises:
        ValueError: A file is missing or not of either generation; names the weight that is unknown or misshapen.
    """
    file = path if _MODEL.fullmatch(paths.name(path)) else paths.join(path, models_in(path)[-1])
    meta_file = re.sub(r"model_(\d+)\.pt$", r"meta_\1.json", file)
    if not paths.exists(meta_file):
        raise ValueError(f"{file} has no {paths.name(meta_file)} beside it, which holds the sizes of the model")
    meta = foreign.read_config(meta_file)
    folder = paths.parent(file)
    words = read_tokenizer(tokenizer or paths.join(paths.parent(paths.parent(folder)), "tokenizer"))
    weights = pickles.check_weights(file, pickles.load_tensors(file))
    names = {name.removeprefix("_orig_mod.") for name in weights}
    architecture = _architecture(meta_file, meta.get("model_config"), names, words)
    model = foreign.build(file, architecture, weights, nanochat_from_file)
    stage = next((s for s, name in FOLDERS.items() if name == paths.name(paths.parent(folder))), None)
    bpb = meta.get("val_bpb")
    metrics = {"val_bpb": float(bpb)} if isinstance(bpb, float) else {}
    return Foreign(model, words, _step(file), stage, metrics)


def _architecture(where: str, config: Any, names: set[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the architecture of a checkpoint with weights of these names."""
    sizes = foreign.sizes_of(where, config, {name: name for name in SIZES})
    sizes["vocab_size"] = foreign.fitted(where, sizes["vocab_size"], tokenizer)
    has = [name for name in _CURRENT if name in names]
    if not has:
        return _generation(sizes, None)
    if missing := [name for name in _CURRENT if name not in names]:
        raise ValueError(
            f"{where}: the weights have {has[0]} but no {missing[0]}: they are of a generation between the first and "
            "the current one, which raychat does not know"
        )
    if not isinstance(config.get("window_pattern"), str):
        raise ValueError(f"{where} has no window_pattern; expected one, such as SSSL, beside {has[0]}")
    return _generation(sizes, config["window_pattern"])


def _generation(sizes: dict[str, int], window_pattern: str | None) -> dict[str, Any]:
    """Return the architecture of the current generation, or of the first one, which has no windows (None)."""
    if window_pattern is None:
        return {"class": "GPT", **dataclasses.asdict(GPTConfig.october_2025(**sizes))}
    return registry.architecture("GPT", **sizes, window_pattern=window_pattern)


def write(
    folder: str, stage: str, tag: str, step: int, model: Model, tokenizer: Tokenizer, val_bpb: float | None
) -> str:
    """Write a checkpoint into `folder`, laid out as nanochat's base directory; return the model's file.

    Embeddings are rounded to bf16, as nanochat keeps them.

    Raises:
        ValueError: The model is of no generation of nanochat; names what it differs in.
    """
    config = _of_a_generation(model)
    target = paths.join(folder, FOLDERS[stage], tag)
    weights = {
        name: tensor.bfloat16() if "wte" in name or "value_embeds" in name else tensor
        for name, tensor in nanochat_to_file(model, padded=config.smear).items()
    }
    sizes = config.sizes()
    windows = {"window_pattern": config.window_pattern} if config.smear else {}
    meta = {"step": step, "val_bpb": val_bpb, "model_config": sizes | windows, "user_config": {}}
    words = paths.join(folder, "tokenizer")
    write_tiktoken(tokenizer, paths.join(words, "tokenizer.pkl"))
    _save(torch.from_numpy(tokenizer.token_bytes()), paths.join(words, "token_bytes.pt"))
    paths.write_json(paths.join(target, f"meta_{step:06d}.json"), meta)
    return _save(weights, paths.join(target, f"model_{step:06d}.pt"))


def _of_a_generation(model: Model) -> GPTConfig:
    """Return a model's config if nanochat has such a model. Raises ValueError otherwise."""
    config = model.config
    if not isinstance(config, GPTConfig):
        raise ValueError(f"nanochat has no {type(model).__name__}; export it --to hf")
    sizes = config.sizes()
    ours, theirs = registry.architecture_of(model), _generation(sizes, config.window_pattern if config.smear else None)
    if different := [f"{name} {ours[name]!r}, not {value!r}" for name, value in theirs.items() if ours[name] != value]:
        raise ValueError(f"nanochat has no such model: {', '.join(different)}; export it --to hf")
    return config


def _save(value: Any, file: str) -> str:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    paths.write_bytes(file, buffer.getvalue())
    return file

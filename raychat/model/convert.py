"""Weights by other projects' names: nanochat's, transformers' GPT-2 and NanoChat, and nanoGPT, which has GPT-2's names.

Every function maps a whole state dict to a whole state dict and changes no value. A weight that it does not know is
refused by name. The vocabulary is padded here to a multiple of 64; elsewhere it may be padded otherwise.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from raychat.model.base import Model

_GPT2_BLOCK = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
_NANOCHAT_BLOCK = {
    "attn.q": "attn.c_q",
    "attn.k": "attn.c_k",
    "attn.v": "attn.c_v",
    "attn.proj": "attn.c_proj",
    "attn.ve_gate": "attn.ve_gate",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
_NANOCHAT = {
    "wte": "transformer.wte",
    "lm_head": "lm_head",
    "smear_gate": "smear_gate",
    "smear_lambda": "smear_lambda",
    "resid_scale": "resid_lambdas",
    "x0_scale": "x0_lambdas",
    "backout_lambda": "backout_lambda",
}
_TRANSFORMERS_NANOCHAT_BLOCK = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc": "mlp.fc1",
    "mlp.proj": "mlp.fc2",
}
_BY_VOCABULARY = ("wte", "lm_head", "value_embeds")  # modules with a row for each token


def gpt2_from_transformers(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Name the weights of transformers' GPT2LMHeadModel, which keeps the matrices of its blocks transposed.

    Raises:
        ValueError: A weight is missing, unknown, or has another shape than `model`'s.
    """
    named = {_gpt2_name(name): tensor for name, tensor in weights.items()}
    kept = {k: t.t().contiguous() if _is_transposed(k, t) else t for k, t in named.items() if not _is_mask(k)}
    return _translated(kept, _gpt2_names(model), model, tied="lm_head.weight")


def gpt2_to_transformers(model: Model) -> dict[str, Tensor]:
    """Return a GPT2's weights by the names of transformers' GPT2LMHeadModel, without the padding; the inverse."""
    weights = _renamed(model, _gpt2_names(model))
    return {f"transformer.{k}": t.t().contiguous() if _is_transposed(k, t) else t for k, t in weights.items()}


def gpt2_from_nanogpt(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Name the weights of a nanoGPT checkpoint. Raises ValueError as `gpt2_from_transformers` does."""
    named = {_gpt2_name(name): tensor for name, tensor in _uncompiled(weights).items()}
    kept = {name: tensor for name, tensor in named.items() if not _is_mask(name)}
    return _translated(kept, _gpt2_names(model), model, tied="lm_head.weight")


def nanochat_from_transformers(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Name the weights of transformers' NanoChatForCausalLM. Raises ValueError as `gpt2_from_transformers` does."""
    return _translated(weights, _transformers_nanochat_names(model), model)


def nanochat_to_transformers(model: Model) -> dict[str, Tensor]:
    """Return a first-generation GPT's weights by the names of transformers' NanoChat; the inverse."""
    return _renamed(model, _transformers_nanochat_names(model))


def nanochat_from_file(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Name the weights of a nanochat checkpoint. Raises ValueError as `gpt2_from_transformers` does."""
    return _translated(_uncompiled(weights), _nanochat_names(model), model)


def nanochat_to_file(model: Model, *, padded: bool) -> dict[str, Tensor]:
    """Return a GPT's weights by the names of a nanochat checkpoint; the inverse.

    padded: whether a padded vocabulary is written, as the current generation has it; the first one has no padding.
    """
    return _renamed(model, _nanochat_names(model), padded=padded)


def unpadded(model: Model) -> dict[str, Tensor]:
    """Return a model's weights by their own names, without the rows that pad the vocabulary."""
    V = model.config.vocab_size
    return {name: t[:V] if _has_vocabulary(name) else t for name, t in model.state_dict().items()}


def _uncompiled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the prefix that torch.compile puts before their names."""
    return {name.removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}


def _gpt2_names(model: Model) -> dict[str, str]:
    """Return transformers' name of each module that has weights, without its prefix."""
    names = {"wte": "wte", "wpe": "wpe", "ln_f": "ln_f"}
    return names | _block_names(model.config.n_layer, "h", _GPT2_BLOCK)


def _transformers_nanochat_names(model: Model) -> dict[str, str]:
    names = {"wte": "model.embed_tokens", "lm_head": "lm_head"}
    return names | _block_names(model.config.n_layer, "model.layers", _TRANSFORMERS_NANOCHAT_BLOCK)


def _nanochat_names(model: Model) -> dict[str, str]:
    """Return nanochat's name of each module that has weights, and of each weight that is in no module."""
    L = model.config.n_layer
    names = _NANOCHAT | {f"value_embeds.{i}": f"value_embeds.{i}" for i in range(L)}
    return names | _block_names(L, "transformer.h", _NANOCHAT_BLOCK)


def _block_names(n_layer: int, theirs: str, block: Mapping[str, str]) -> dict[str, str]:
    return {f"blocks.{i}.{a}": f"{theirs}.{i}.{b}" for i in range(n_layer) for a, b in block.items()}


def _gpt2_name(name: str) -> str:
    """Return a name without the prefix that older files do not have."""
    return name.removeprefix("transformer.")


def _is_mask(name: str) -> bool:
    """Tell whether this is the causal mask, which older files keep."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _is_transposed(name: str, tensor: Tensor) -> bool:
    return name.startswith("h.") and tensor.dim() == 2


def _has_vocabulary(name: str) -> bool:
    return name.startswith(_BY_VOCABULARY)


def _theirs(name: str, names: Mapping[str, str]) -> str:
    """Return their name of one of our weights, from the names of modules."""
    module, dot, leaf = name.rpartition(".")
    return f"{names[module]}.{leaf}" if dot else names[name]


def _renamed(model: Model, names: Mapping[str, str], padded: bool = False) -> dict[str, Tensor]:
    """Return copies of a model's weights by other names of its modules."""
    weights = model.state_dict() if padded else unpadded(model)
    return {_theirs(name, names): tensor.detach().clone() for name, tensor in weights.items()}


def _translated(
    weights: Mapping[str, Tensor], names: Mapping[str, str], model: Model, tied: str | None = None
) -> dict[str, Tensor]:
    """Return weights by a model's own names, in its dtypes, with its padding.

    Args:
        names: theirs of each module of the model.
        tied: their name of a second copy of the embedding, which may be there.
    """
    found, translated = dict(weights), dict[str, Tensor]()
    head = found.pop(tied, None) if tied else None
    for name, own in model.state_dict().items():
        theirs = _theirs(name, names)
        if theirs not in found:
            raise ValueError(f"the weights have no {theirs}; expected one of shape {tuple(own.shape)}")
        tensor = found.pop(theirs)
        if _has_vocabulary(name) and tensor.shape[1:] == own.shape[1:]:
            tensor = _padded(theirs, tensor, model.config.vocab_size, len(own))
        if tensor.shape != own.shape:
            raise ValueError(f"{theirs} has shape {tuple(tensor.shape)}; expected {tuple(own.shape)}")
        translated[name] = tensor.to(own.dtype)
    if found:
        raise ValueError(f"unknown weights: {', '.join(sorted(found)[:5])}; they are of another architecture")
    if head is not None and not torch.equal(head, weights[names["wte"] + ".weight"]):
        raise ValueError(f"{tied} differs from the embedding; GPT-2 has one matrix for both")
    return translated


def _padded(name: str, tensor: Tensor, vocab_size: int, num_rows: int) -> Tensor:
    """Cut another project's padding off and put ours in its place, unless they are equal."""
    if len(tensor) == num_rows:
        return tensor
    if len(tensor) < vocab_size:
        raise ValueError(f"{name} has {len(tensor)} rows; expected one for each of {vocab_size} tokens")
    return F.pad(tensor[:vocab_size], (0, 0, 0, num_rows - vocab_size))

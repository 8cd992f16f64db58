"""A model as a folder that transformers loads, and its tokenizer as tiktoken's files.

The first generation of GPT becomes transformers' NanoChat, GPT-2 its GPT2LMHeadModel. Later generations bring
`modeling_raychat.py` along and are loaded with `trust_remote_code=True`.
"""

import base64
import os
from dataclasses import asdict
from importlib import resources
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, get_token
from safetensors.torch import save
from torch import Tensor

from raychat import huggingface, paths
from raychat.model.base import Model
from raychat.model.convert import gpt2_to_transformers, nanochat_to_transformers, unpadded
from raychat.model.gpt import GPTConfig
from raychat.model.registry import architecture_of
from raychat.runs import CHAT_STAGES
from raychat.tokenizer import CHARACTER_PATTERN, SPECIAL_TOKENS, Tokenizer

MODELING = "modeling_raychat"  # the module that a folder of a later generation holds a copy of
TEMPLATE = "chat_template.jinja"


class Exported(NamedTuple):
    """A model in another form."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def remote_code(self) -> bool:
        """Whether the model needs its own modeling file."""
        return "auto_map" in self.config


def exported(model: Model) -> Exported:
    """Return a model as transformers has it: its config.json, without the special tokens, and its weights in fp32."""
    config, name = model.config, architecture_of(model)["class"]
    if name == "GPT2":
        form = Exported(_gpt2_config(config), _with_biases(gpt2_to_transformers(model)))
    elif config == GPTConfig.october_2025(**config.sizes()):
        form = Exported(_nanochat_config(config), nanochat_to_transformers(model))
    else:
        form = Exported(_raychat_config(config), unpadded(model))
    weights = {key: tensor.detach().float().cpu().contiguous() for key, tensor in form.weights.items()}
    return Exported(form.config | {"dtype": "float32"}, weights)


def can_chat(stage: str, tokenizer: Tokenizer) -> bool:
    """Tell whether the model of a stage has learned to chat, with the special tokens that this takes."""
    return stage in CHAT_STAGES and set(SPECIAL_TOKENS) <= tokenizer.special.keys()


def write_model(folder: str, model: Model, tokenizer: Tokenizer, *, chat: bool) -> Exported:
    """Write what `AutoModelForCausalLM` and `AutoTokenizer` read into a local folder.

    Args:
        chat: whether the model has learned to chat (`can_chat`): it gets the chat template, and stops after its turn.

    Raises:
        ValueError: The tokenizer has a token that no merge makes, or characters beyond ASCII.
    """
    form = exported(model)
    files = tokenizer_files(tokenizer, model.config.sequence_len, chat=chat)  # refuses before anything is written
    special = tokenizer.special
    end = [special["<|assistant_end|>"], tokenizer.bos] if chat else tokenizer.bos
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": end}
    # With an id for padding, transformers would keep that token's embedding as it is in training, and `generate` would
    # take the BOS of a prompt without a mask for padding. The tokenizer pads with BOS, and gives the mask.
    files["config.json"] = form.config | ids | {"pad_token_id": None}
    files["generation_config.json"] = ids
    for name, content in files.items():
        paths.write_json(os.path.join(folder, name), content)
    paths.write_bytes(os.path.join(folder, "model.safetensors"), save(form.weights, metadata={"format": "pt"}))
    if form.remote_code:
        paths.write_text(os.path.join(folder, f"{MODELING}.py"), _source(f"{MODELING}.py"))
    return form


def tokenizer_files(tokenizer: Tokenizer, sequence_len: int, *, chat: bool) -> dict[str, Any]:
    """Return tokenizer.json and tokenizer_config.json; arguments and errors as those of `write_model`."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.specials[0],
        "eos_token": "<|assistant_end|>" if chat else tokenizer.specials[0],
        "pad_token": tokenizer.specials[0],
        "padding_side": "left",
        "model_max_length": sequence_len,
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        config["chat_template"] = _source(TEMPLATE)
    if tokenizer.pattern == CHARACTER_PATTERN:
        tokenizer = _of_ascii(tokenizer)
    data = huggingface.to_json(tokenizer) | {"post_processor": _bos_first(tokenizer)}
    return {"tokenizer.json": data, "tokenizer_config.json": config}


def _of_ascii(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer of characters with a pattern that `tokenizers` understands, too."""
    if longer := [token.decode() for token in tokenizer.tokens if len(token) > 1]:
        raise ValueError(
            f"the tokenizer has characters of more than one byte, such as {longer[0]!r}; expected ASCII alone: "
            "a tokenizer.json would have to merge them from bytes"
        )
    return Tokenizer(tokenizer.tokens, tokenizer.specials, r"[\s\S]")


def _bos_first(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the post-processor that puts a BOS before every text, as in training."""
    bos = tokenizer.specials[0]
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    tokens = {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": first, "pair": [*first, *second], "special_tokens": tokens}


def write_tiktoken(folder: str, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as tiktoken's ranks, and the pattern and special tokens that belong to them, into a folder."""
    ranks = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokenizer.tokens))
    paths.write_text(os.path.join(folder, "tokenizer.tiktoken"), "".join(ranks))
    rest = {"pat_str": tokenizer.pattern, "special_tokens": tokenizer.special}
    paths.write_json(os.path.join(folder, "tiktoken.json"), rest)


def push(folder: str, repo: str) -> str:
    """Upload a local folder to a model repository of the hub, which is made if it is missing; return its address.

    HF_ENDPOINT, and HF_TOKEN or the token of `hf auth login`, are respected.

    Raises:
        ConnectionError: There is no token, or the hub refuses it or cannot be reached; the folder stays as it is.
    """
    remedy = f"{folder} stays; upload it later with: hf upload {repo} {folder}"
    if get_token() is None:
        raise ConnectionError(f"there is no token for the hub: run `hf auth login`, or set HF_TOKEN. {remedy}")
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        made = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload by raychat")
    except Exception as error:  # of many kinds, some without a common base
        raise ConnectionError(f"{repo} could not be uploaded: {error}. {remedy}") from error
    return str(made)


def _gpt2_config(config: Any) -> dict[str, Any]:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.sequence_len,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        **dropout,
    }


def _nanochat_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "model_type": "nanochat",
        "architectures": ["NanoChatForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.sequence_len,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # PyTorch's default
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "final_logit_softcapping": config.softcap,
    }


def _raychat_config(config: GPTConfig) -> dict[str, Any]:
    auto_map = {"AutoConfig": f"{MODELING}.RaychatConfig", "AutoModelForCausalLM": f"{MODELING}.RaychatForCausalLM"}
    return {
        "model_type": "raychat",
        "architectures": ["RaychatForCausalLM"],
        "auto_map": auto_map,
        **asdict(config),
        "windows": config.windows(),
    }


def _with_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the biases that a GPT-2 trained without them lacks: zeros, as transformers always has them."""
    biased = {name: tensor for name, tensor in weights.items() if ".h." in name or ".ln_f." in name}
    zeros = {name.replace(".weight", ".bias"): torch.zeros(tensor.size(-1)) for name, tensor in biased.items()}
    return zeros | weights


def _source(name: str) -> str:
    return (resources.files("raychat.interchange") / name).read_text(encoding="utf-8")

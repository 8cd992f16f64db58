"""nanoGPT's checkpoint: `ckpt.pt`, with the arguments of the model beside its weights."""

import torch
from torch import Tensor

from raychat import paths
from raychat.interchange import foreign, pickles
from raychat.interchange.foreign import Foreign
from raychat.interchange.tokenizers import GPT2_VOCAB_SIZE, gpt2_tokenizer, read_tokenizer
from raychat.model import registry
from raychat.model.convert import gpt2_from_nanogpt
from raychat.tokenizer import CHARACTER_PATTERN, Tokenizer

FILE = "ckpt.pt"
_SIZES = {"sequence_len": "block_size", **{name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}}
_TABLES = ("transformer.wte.weight", "lm_head.weight")


def read(path: str, tokenizer: str | None = None) -> Foreign:
    """Read a checkpoint.

    Args:
        path: the file, or the folder that holds `ckpt.pt`.
        tokenizer: file or folder, such as data/shakespeare_char/meta.pkl; None = `meta.pkl` beside the checkpoint, or
            else GPT-2's where the vocabulary has its size.

    Raises:
        ValueError: It is no such checkpoint, or its tokenizer is not known; names what does not fit.
    """
    file = path if path.endswith(".pt") else paths.join(path, FILE)
    saved = pickles.load_tensors(file)
    if missing := [name for name in ("model", "model_args") if name not in saved]:
        raise ValueError(f"{file} holds {sorted(map(str, saved))[:5]}, but no {missing[0]}, as nanoGPT's ckpt.pt does")
    args = saved["model_args"]
    sizes = foreign.sizes_of(file, args, _SIZES)
    words = _tokenizer(file, sizes["vocab_size"], tokenizer)
    weights = pickles.check_weights(file, saved["model"])
    if words.pattern == CHARACTER_PATTERN:
        weights = _with_bos(file, weights, sizes["vocab_size"], words)
        sizes["vocab_size"] += 1
    sizes["vocab_size"] = foreign.fitted(file, sizes["vocab_size"], words)
    bias, dropout = args.get("bias", True), args.get("dropout", 0.0)
    if not isinstance(bias, bool) or not isinstance(dropout, int | float):
        raise ValueError(
            f"{file}: bias is {bias!r:.50} and dropout {dropout!r:.50}; expected True or False and a number"
        )
    architecture = registry.architecture("GPT2", **sizes, bias=bias, dropout=float(dropout))
    model = foreign.build(file, architecture, weights, gpt2_from_nanogpt)
    step = saved.get("iter_num")
    return Foreign(model, words, step if isinstance(step, int) and step > 0 else 0, "base")


def _tokenizer(file: str, vocab_size: int, given: str | None) -> Tokenizer:
    beside = paths.join(paths.parent(file), "meta.pkl")
    if given or paths.exists(beside):
        return read_tokenizer(given or beside)
    if vocab_size < GPT2_VOCAB_SIZE:
        raise ValueError(
            f"{file} has a vocabulary of {vocab_size} and no meta.pkl beside it; pass --tokenizer "
            "data/<dataset>/meta.pkl, which nanoGPT's prepare.py wrote"
        )
    return gpt2_tokenizer()


def _with_bos(file: str, weights: dict[str, Tensor], vocab_size: int, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Give a model of characters a row for the BOS, which raychat adds to its tokenizer.

    The row is the mean of all rows. So its logit is the mean of all logits: a BOS is never likely, as it should be.
    """
    if tokenizer.bos != vocab_size:
        raise ValueError(
            f"{file} has {vocab_size} characters, and its tokenizer {tokenizer.bos}; pass the right meta.pkl"
        )
    added = dict(weights)
    for name, tensor in weights.items():
        if name.removeprefix("_orig_mod.") in _TABLES and tensor.dim() == 2:
            mean = tensor[:vocab_size].float().mean(0, keepdim=True)
            added[name] = torch.cat((tensor[:vocab_size], mean.to(tensor.dtype)))
    return added

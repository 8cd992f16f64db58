"""Checkpoints are values: a folder `step_000123` with

    model.safetensors               weights by parameter name
    optimizer_000.safetensors ...   one file a worker, tensors named "<parameter>/<slot>/<first row>"
    tokenizer/                      so that the folder alone is enough to talk to the model
    meta.json                       step, recipe, runtime, metrics, size and sha256 of the files above ...; written last

Any number of workers reads what any number has written. Nothing is pickled. Sizes are compared whenever checkpoints are
listed, sha256 when a stage resumes from one and when its model is loaded. What is damaged is skipped or refused.
"""

from raychat.checkpoint.find import all_in, latest, latest_of, latest_verified, verify
from raychat.checkpoint.load import has_optimizer, load_model, load_optimizer, load_tokenizer, load_weights
from raychat.checkpoint.meta import FORMAT, Meta, read_meta
from raychat.checkpoint.save import Saving, begin_checkpoint, save_checkpoint

__all__ = [
    "FORMAT",
    "Meta",
    "Saving",
    "all_in",
    "begin_checkpoint",
    "has_optimizer",
    "latest",
    "latest_of",
    "latest_verified",
    "load_model",
    "load_optimizer",
    "load_tokenizer",
    "load_weights",
    "read_meta",
    "save_checkpoint",
    "verify",
]

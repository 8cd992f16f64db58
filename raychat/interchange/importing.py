"""Make an ordinary run of a checkpoint of another project: it can be evaluated, chatted with, trained further."""

import dataclasses
import os
import re
from collections.abc import Callable

from raychat import checkpoint, paths
from raychat.checkpoint import Meta
from raychat.interchange import hf_import, nanochat, nanogpt
from raychat.interchange.foreign import Foreign
from raychat.model import registry
from raychat.recipe import Recipe
from raychat.runs import STAGES

BATCH_TOKENS = 2**19  # at which the learning rates of both models hold without a factor
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

Read = Callable[[str, str | None], Foreign]


def import_run(source: str, storage: str, run: str, stage: str | None = None, tokenizer: str | None = None) -> str:
    """Make a stage of a run out of a checkpoint of another project, or find that this is done; return the checkpoint.

    Args:
        source: file or folder of nanochat, nanoGPT or transformers (local or remote), or a name on the hub.
        stage: base, mid, sft or rl; None = as nanochat's folder says, else base.
        tokenizer: file or folder; None = where the project keeps it.

    Raises:
        ValueError: There is no such source or it is not one that raychat reads, or the run has such a stage or
            another tokenizer already.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; expected one of {', '.join(STAGES)}")
    source = paths.absolute(source) if os.path.exists(source) else source.rstrip("/")
    read, path = _reader(source)
    found = read(path, tokenizer)
    run_folder = paths.join(storage, "runs", run)
    folder = paths.join(run_folder, stage or found.stage or STAGES[0])
    recipe = Recipe(
        model=registry.architecture_of(found.model),
        batch_tokens=BATCH_TOKENS,
        lr_scale=1.0,
        steps=found.step,
        tokenizer=found.tokenizer.fingerprint,
    )
    if (there := checkpoint.latest(folder)) is not None:
        _check_same(there, source, recipe)
        return there
    found.tokenizer.save_once(paths.join(run_folder, "tokenizer"))
    meta = Meta(found.step, recipe, metrics=dict(found.metrics))
    saved = checkpoint.save_checkpoint(folder, found.model, None, found.tokenizer, meta)
    num_params = sum(p.numel() for p in found.model.parameters())
    summary = {"steps": found.step, "num_params": num_params, "imported_from": source, **found.metrics}
    paths.write_json(
        paths.join(folder, "summary.json"), summary | {"checkpoint": saved, "recipe": dataclasses.asdict(recipe)}
    )
    return saved


def _reader(source: str) -> tuple[Read, str]:
    """Return what reads a source, and the file or folder that it is to read."""
    if source.endswith(".pt"):
        if not paths.exists(source):
            raise ValueError(f"there is no file {source}")
        is_nanochat = nanochat.models_in(paths.parent(source)) and paths.name(source) != nanogpt.FILE
        return (nanochat.read if is_nanochat else nanogpt.read), source
    there = set(paths.names(source))
    if not there:
        return hf_import.read, _downloaded(source)
    readers: dict[str, Read] = {hf_import.CONFIG: hf_import.read, nanogpt.FILE: nanogpt.read}
    kinds = {name: read for name, read in readers.items() if name in there}
    kinds |= dict.fromkeys(nanochat.models_in(source)[-1:], nanochat.read)
    if len(kinds) != 1:
        found = ", ".join(kinds) if kinds else f"only {', '.join(sorted(there)[:8])}"
        raise ValueError(
            f"{source} holds {found}; expected one of: config.json (transformers), ckpt.pt (nanoGPT), model_<step>.pt "
            "(nanochat). Name the file, or the folder that holds it"
        )
    return kinds.popitem()[1], source


def _downloaded(name: str) -> str:
    if name.startswith(".") or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"there is no folder {name}, and it is no name of the hub such as openai-community/gpt2")
    return hf_import.download(name)


def _check_same(there: str, source: str, recipe: Recipe) -> None:
    """Raise ValueError unless a stage's checkpoint is what an import of this source has made."""
    summary = paths.join(paths.parent(there), "summary.json")
    made_from = paths.read_json(summary).get("imported_from") if paths.exists(summary) else None
    if made_from != source or checkpoint.read_meta(there).recipe != recipe:
        raise ValueError(f"{there} is there already, and not from {source}; choose another --run or remove its folder")
    print(f"imported already: {there}")

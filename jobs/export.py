"""Take what was made elsewhere: a model to transformers or nanochat, a tokenizer to tiktoken.

python jobs/export.py --run d20 --stage rl --to hf --out d20

python jobs/export.py --run d20 --stage rl --to hf --out d20 --push NAME/d20  (and to the Hugging Face hub)

python jobs/export.py --run d20 --stage sft --to nanochat --out nanochat-base-directory

python jobs/export.py --run d20 --stage base --to tiktoken --out d20-tokenizer
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from raychat.cluster import Cluster
from raychat.settings import at_least

if TYPE_CHECKING:
    from raychat.runs import Found


@dataclass(frozen=True)
class Args:
    out: str  # folder to write, not there yet or empty
    run: str = "tiny"  # name of the run
    stage: Literal["base", "mid", "sft", "rl"] = "rl"  # which model of the run
    step: int | None = None  # which of its checkpoints; None = the newest
    to: Literal["hf", "nanochat", "tiktoken"] = "hf"  # hf = for transformers; tiktoken = the tokenizer alone
    push: str | None = None  # upload the folder to NAME/MODEL on the hub, which is made, public, if it is missing
    license: str | None = None  # that the model card names, as the hub calls it (mit, apache-2.0, ...)
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here

    def __post_init__(self) -> None:
        at_least(self, step=1)


def run(args: Args) -> str:
    """Write the folder, upload it where that is wanted, and return its path.

    Raises:
        ValueError: There is no such checkpoint, the folder is not empty, or the model cannot be had in this form.
        ConnectionError: The upload failed; the folder stays.
    """
    from raychat import paths, runs
    from raychat.interchange import hf_export

    if args.to not in WRITERS:
        raise ValueError(f"--to is {args.to!r}; expected one of {', '.join(WRITERS)}")
    found = runs.find_checkpoint(args.cluster.storage(), args.run, args.stage, args.step)
    out = paths.absolute(args.out)
    if paths.exists(out) and not (paths.is_folder(out) and not paths.names(out)):
        raise ValueError(f"{out} is not empty; expected a folder that is empty or not there yet")
    if args.push and not paths.is_local(out):
        raise ValueError(f"--out is {out}; expected a folder of this machine, for --push to upload")
    with paths.new_folder(out) as folder:
        WRITERS[args.to](folder, found, args)
    print(f"written: {out}", flush=True)
    if args.push:
        print(f"uploaded: {hf_export.push(out, args.push)}", flush=True)
    return out


def _to_hf(folder: str, found: "Found", args: Args) -> None:
    import torch

    from raychat import checkpoint, paths
    from raychat.interchange import card, hf_export

    model, meta = checkpoint.load_model(found.path, torch.device("cpu"))
    tokenizer = checkpoint.load_tokenizer(found.path)
    chat = hf_export.can_chat(found.stage, tokenizer)
    form = hf_export.write_model(folder, model, tokenizer, chat=chat)
    report = card.figures(args.cluster.run_folder(found.run))
    name = args.push or paths.name(args.out)
    text = card.card(found, meta, form, report, name=name, chat=chat, license=args.license)
    paths.write_text(paths.join(folder, "README.md"), text)


def _to_nanochat(folder: str, found: "Found", args: Args) -> None:
    import torch

    from raychat import checkpoint
    from raychat.interchange import nanochat

    model, meta = checkpoint.load_model(found.path, torch.device("cpu"))
    tokenizer = checkpoint.load_tokenizer(found.path)
    nanochat.write(folder, found.stage, found.run, found.step, model, tokenizer, meta.metrics.get("val_bpb"))


def _to_tiktoken(folder: str, found: "Found", args: Args) -> None:
    from raychat import checkpoint
    from raychat.interchange import hf_export

    hf_export.write_tiktoken(folder, checkpoint.load_tokenizer(found.path))


WRITERS: dict[str, Callable[[str, "Found", Args], None]] = {
    "hf": _to_hf,
    "nanochat": _to_nanochat,
    "tiktoken": _to_tiktoken,
}


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Args, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"export: {error}")

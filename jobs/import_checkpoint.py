"""Make a run of a checkpoint of nanochat, nanoGPT or transformers, to evaluate, chat with and train further.

    python jobs/import_checkpoint.py ~/.cache/nanochat/chatsft_checkpoints/d20 --run d20
    python jobs/import_checkpoint.py out-shakespeare-char --run char --tokenizer data/shakespeare_char/meta.pkl
    python jobs/import_checkpoint.py gpt2-xl --run gpt2-xl

No code of the source runs: pickles may hold tensors and plain values only. docs/interchange.md says what is read.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from raychat.cluster import Cluster


@dataclass(frozen=True)
class Args:
    source: str  # file or folder of the checkpoint, or a name on the Hugging Face hub
    run: str = "imported"  # name of the run that it becomes
    stage: Literal["base", "mid", "sft", "rl"] | None = None  # what it becomes; None = by nanochat's folder, else base
    tokenizer: str | None = None  # its tokenizer, file or folder; None = where the project keeps it
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here


def run(args: Args) -> str:
    """Import the checkpoint; print and return where it lies now.

    Raises:
        ValueError: The source is none that raychat reads, or the run has another such stage already.
        FloatingPointError: A weight is NaN or infinite.
    """
    from raychat.interchange.importing import import_run

    path = import_run(args.source, args.cluster.storage(), args.run, args.stage, args.tokenizer)
    print(f"import_checkpoint: {path}")
    return path


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Args, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"import_checkpoint: {error}")

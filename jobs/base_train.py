"""Pretrain a base model: `python jobs/base_train.py --run d12 --depth 12 --data climbmix`.

Reads raw shards, tokenizes and packs them with Ray Data while training already runs on the first of them, and trains on
`--cluster.workers` data-parallel workers. Everything but the depth is derived from it. Killed at any moment, the same
command resumes from the last checkpoint.
"""

from dataclasses import dataclass, field
from typing import Any

from raychat.cluster import Cluster


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run: everything goes to <storage>/runs/<run>
    data: tuple[str, ...] = ("tinyworld",)  # climbmix, fineweb-edu, tinyworld, or folders, files, patterns of text
    num_shards: int | None = None  # shards to use; None = as many as the run needs (hub data) or all there are
    depth: int = 12  # the one dial: width, heads, batch, learning rates and length of training follow from it
    head_dim: int | None = None  # channels of an attention head; None = 128, or 64 below depth 8
    sequence_len: int = 2048  # context length in tokens
    window_pattern: str = "SSSL"  # sliding windows, tiled over the layers: S = a quarter of the context, L = all of it
    ratio: float = 12.0  # training tokens per scaling parameter; 10.5 is compute-optimal
    steps: int | None = None  # optimizer steps; None = as many as the ratio asks for
    batch_tokens: int | None = None  # tokens per optimizer step, all workers together; None = by the scaling rule
    device_rows: int | None = None  # rows of a micro-batch on one device; None = as many as its memory holds
    lr_scale: float | None = None  # factor on every learning rate; None = sqrt(batch_tokens / 2^19)
    eval_every: int = 250  # steps between validations
    eval_tokens: int = 80 * 524288  # validation tokens to measure on, at most
    save_every: int = 500  # steps between checkpoints
    keep: int = 2  # newest checkpoints that stay, and the one of the lowest val_bpb; 0 = all, to chat with every age
    seed: int = 0  # seed of the initial weights
    wandb: bool = False  # log to Weights & Biases (the driver's WANDB_* variables reach the workers)
    cluster: Cluster = field(default_factory=Cluster)


def run(args: Args) -> dict[str, Any]:
    """Train the base model, or find that it is trained; return the stage's summary."""
    from raychat.cluster.launch import train_on_tokens
    from raychat.data import corpus
    from raychat.data.pack import Packing, documents
    from raychat.model import registry
    from raychat.optim import schedule
    from raychat.recipe import Recipe, Runtime
    from raychat.tokenizer import Tokenizer
    from raychat.train import scaling
    from raychat.train.stage import Stage

    cluster, storage = args.cluster, args.cluster.storage()
    tokenizer = Tokenizer.load(cluster.run_folder(args.run, "tokenizer"))
    sizes = scaling.from_depth(
        args.depth,
        head_dim=args.head_dim,
        sequence_len=args.sequence_len,
        vocab_size=tokenizer.vocab_size,
        ratio=args.ratio,
        batch_tokens=args.batch_tokens,
        steps=args.steps,
    )
    print(f"base: {sizes}")
    recipe = Recipe(
        model=registry.architecture("GPT", **sizes.model(), window_pattern=args.window_pattern),
        batch_tokens=sizes.batch_tokens,
        lr_scale=args.lr_scale if args.lr_scale is not None else sizes.lr_scale,
        weight_decay=sizes.weight_decay,
        steps=sizes.steps,
        seed=args.seed,
        tokenizer=tokenizer.fingerprint,
        data=args.data,
        num_shards=args.num_shards,
    )

    def packings() -> tuple[Packing, Packing]:
        num_shards = args.num_shards or corpus.shards_needed(args.data, sizes.tokens)
        train, val = (
            documents(shards, tokenizer, args.sequence_len, storage)
            for shards in corpus.split(corpus.shards(args.data, storage, num_shards))
        )
        return train, val

    stage = Stage(
        name=f"{args.run}/base",
        storage=storage,
        recipe=recipe,
        schedule=schedule.base,
        runtime=Runtime(args.device_rows, args.eval_every, args.save_every, args.keep, args.wandb),
    )
    summary = train_on_tokens(stage, packings, cluster, max_val_rows=max(1, args.eval_tokens // args.sequence_len))
    print(f"base: {summary['checkpoint']} val_bpb {summary['val_bpb']:.4f} (unigram {summary['unigram_bpb']:.4f})")
    return summary


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

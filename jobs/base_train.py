"""Pretrain a base model: `python jobs/base_train.py --run d12 --depth 12 --data climbmix`.

Reads raw shards, tokenizes and packs them with Ray Data while training already runs on the first of them, and trains on
`--cluster.workers` data-parallel workers. Everything but the depth is derived from it. Killed at any moment, the same
command resumes from the last checkpoint. With `--dry-run` it prints what the run would take, and ends.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raychat.cluster import Cluster
from raychat.settings import MAX_SEED, above, at_least, at_most

if TYPE_CHECKING:  # a job shows its help without torch
    from raychat.recipe import Recipe
    from raychat.train.stage import Stage


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run: everything goes to <storage>/runs/<run>
    data: tuple[str, ...] = ("tinyworld",)  # climbmix, fineweb-edu, tinyworld, or folders, files, patterns of text
    num_shards: int | None = None  # shards to use; None = as many as the run needs (hub data) or all there are
    depth: int = 12  # the one dial: width, heads, batch, learning rates and length of training follow from it
    width: int | None = None  # channels between the layers; None = 64 per layer
    head_dim: int | None = None  # channels of an attention head; None = 128, or 64 below depth 8
    sequence_len: int = 2048  # context length in tokens
    window_pattern: str = "SSSL"  # sliding windows, tiled over the layers: S = a quarter of the context, L = all of it
    ratio: float = 12.0  # training tokens per scaling parameter; 10.5 is compute-optimal
    steps: int | None = None  # optimizer steps; None = as many as the ratio asks for
    batch_tokens: int | None = None  # tokens per optimizer step, all workers together; None = by the scaling rule
    device_rows: int | None = None  # rows of a micro-batch on one device; None = as many as its memory holds
    lr_scale: float | None = None  # factor on every learning rate; None = sqrt(batch_tokens / 2^19), at least 0.4
    eval_every: int = 250  # steps between validations; 0 = at the end only
    eval_tokens: int = 80 * 524288  # validation tokens to measure on, at most
    core_items: int = 0  # items of each of CORE's tasks that every validation scores, too; 0 = none
    bundle: str = "tinyworld"  # CORE's tasks: tinyworld, or a folder with core.yaml, eval_meta_data.csv and eval_data/
    save_every: int = 500  # steps between checkpoints; 0 = at the end only
    keep: int = 2  # newest checkpoints that stay, and the one of the lowest val_bpb; 0 = all, to chat with every age
    seed: int = 0  # seed of the initial weights
    compile: bool | None = None  # compile the model; None = on GPUs, and on CPUs where the stage is long enough
    activation_budget: float = 1.0  # share of the activations that a compiled step keeps; less = more rows, slower
    fp8: bool = False  # multiply in 8 bits in training, on GPUs from compute capability 8.9 on (L4, H100)
    profile: bool = False  # write a trace of the sixth to eighth step to the stage's folder
    dry_run: bool = False  # only print what the run would take: parameters, FLOPs, steps, memory, time and cost
    wandb: bool = False  # log to Weights & Biases (the driver's WANDB_* variables reach the workers)
    tensorboard: bool = False  # log to the stage's folder for TensorBoard
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(
            self,
            num_shards=1,
            depth=1,
            width=2,
            head_dim=2,
            sequence_len=1,
            steps=1,
            batch_tokens=1,
            eval_tokens=1,
            core_items=0,
            seed=0,
        )
        above(self, ratio=0, lr_scale=0)
        at_most(self, seed=MAX_SEED)


def run(args: Args) -> dict[str, Any]:
    """Train the base model, or find that it is trained; return the stage's summary."""
    if args.dry_run:
        return dry_run(args)

    from functools import partial

    from raychat.cluster.launch import train_on_tokens
    from raychat.data import corpus
    from raychat.data.pack import Packing, pretraining
    from raychat.evals.bundle import load_bundle
    from raychat.tokenizer import Tokenizer
    from raychat.train.token_feed import TokenSource

    tokenizer = Tokenizer.load(args.cluster.run_folder(args.run, "tokenizer"))
    stage = stage_of(args, tokenizer.vocab_size, tokenizer.fingerprint)

    def packings() -> tuple[Packing, Packing]:
        num_shards = num_shards_of(args, stage.recipe)
        return pretraining(args.data, tokenizer, args.sequence_len, stage.storage, num_shards)

    source = partial(
        TokenSource,
        max_val_rows=max(1, args.eval_tokens // args.sequence_len),
        core=tuple(load_bundle(corpus.bundle_root(args.bundle, stage.storage))) if args.core_items else (),
        core_items=args.core_items,
    )
    summary = train_on_tokens(stage, packings, args.cluster, source=source)
    print(f"base: {summary['checkpoint']} val_bpb {summary['val_bpb']:.4f} (unigram {summary['unigram_bpb']:.4f})")
    return summary


def stage_of(args: Args, vocab_size: int, fingerprint: str | None) -> "Stage":
    """Return the stage with everything derived that was not given. fingerprint: the tokenizer's; None = unknown."""
    from raychat.model import registry
    from raychat.optim import schedule
    from raychat.recipe import Recipe, Runtime
    from raychat.train import scaling
    from raychat.train.stage import Stage

    sizes = scaling.from_depth(
        args.depth,
        width=args.width,
        head_dim=args.head_dim,
        sequence_len=args.sequence_len,
        vocab_size=vocab_size,
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
        tokenizer=fingerprint,
        data=args.data,
        num_shards=args.num_shards,
    )
    return Stage(
        name=f"{args.run}/base",
        storage=args.cluster.storage(),
        recipe=recipe,
        schedule=schedule.base,
        runtime=Runtime.of(args),
    )


def num_shards_of(args: Args, recipe: "Recipe") -> int | None:
    """Return the shards to train on; None = all."""
    from raychat.data import corpus

    assert recipe.steps is not None
    return args.num_shards or corpus.shards_needed(args.data, recipe.steps * recipe.batch_tokens)


def dry_run(args: Args, vocab_size: int | None = None, price_per_hour: float | None = None) -> dict[str, Any]:
    """Print what the stage will take, and return its figures. Only the tokenizer and the names of shards are read.

    Args:
        vocab_size: of the tokenizer, if the run has none yet; None = the default.
        price_per_hour: US dollars, of all machines together; None = list prices.

    Raises:
        ValueError: A setting is one that the run would refuse.
    """
    from raychat import paths
    from raychat.data import corpus
    from raychat.report import dry_run
    from raychat.tokenizer import FILE_NAME, Tokenizer
    from raychat.train.scaling import VOCAB_SIZE

    folder = args.cluster.run_folder(args.run, "tokenizer")
    if paths.exists(paths.join(folder, FILE_NAME)):
        tokenizer = Tokenizer.load(folder)
        stage = stage_of(args, tokenizer.vocab_size, tokenizer.fingerprint)
    else:
        stage = stage_of(args, vocab_size or VOCAB_SIZE, None)
        print(f"{folder} has no tokenizer yet: counted with {vocab_size or VOCAB_SIZE:,} tokens")
    data = corpus.described(args.data, stage.storage, num_shards_of(args, stage.recipe))
    return dry_run.show(stage, args.cluster.max_workers, data, price_per_hour)


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

"""Train a GPT-2 as nanoGPT does: on the characters of Shakespeare, on OpenWebText, or on from given weights.

    python jobs/gpt2_train.py                                           characters: five minutes on two CPU cores
    python jobs/gpt2_train.py --preset gpt2 --cluster.workers 8         124M parameters on 8 GPUs
    python jobs/gpt2_train.py --preset shakespeare --init-from gpt2-xl  fine-tune the base model of the run gpt2-xl
    python jobs/gpt2_train.py --run mine --data mine.txt --steps 500    a text of one's own

The model is the base stage of its run: jobs/sample.py continues texts with it, jobs/base_eval.py evaluates it. Killed
at any moment, the same command resumes. docs/nanogpt.md has nanoGPT's commands and these side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raychat.cluster import Cluster
from raychat.settings import MAX_SEED, above, at_least, at_most

if TYPE_CHECKING:  # a job shows its help without torch
    from raychat.tokenizer import Tokenizer
    from raychat.train.stage import Stage


@dataclass(frozen=True)
class Args:
    """What is not given is the preset's; shown are the values of shakespeare-char without a GPU."""

    preset: Literal["shakespeare-char", "gpt2", "shakespeare"] = "shakespeare-char"  # what all settings start from
    run: str | None = None  # name of the run; None = the preset's name
    init_from: str | None = None  # run, RUN-STAGE@STEP, folder, or what import_checkpoint takes; None = random weights
    data: tuple[str, ...] = ("tinyshakespeare",)  # a text file, whose last tenth is for validation, or as in base_train
    tokenizer: str | None = "characters"  # characters, gpt2, a file or folder, None = the run's; with init-from its own
    n_layer: int = 4  # layers; with init-from its own, as are heads and width
    n_head: int = 4  # heads of attention
    n_embd: int = 128  # width
    sequence_len: int = 64  # context in tokens; that of init-from can be cut
    dropout: float = 0.0  # share of activations that training drops
    batch_tokens: int = 12 * 64  # tokens per optimizer step, all workers together
    steps: int = 2000  # optimizer steps
    lr: float = 3e-3  # peak learning rate
    final_lr: float = 0.1  # where its cosine ends, as a share of the peak; 1 = constant
    warmup_steps: int = 100  # optimizer steps over which the learning rate rises
    beta2: float = 0.99  # decay of AdamW's second moment
    weight_decay: float = 0.1  # of matrices and embeddings
    device_rows: int | None = None  # rows of a micro-batch on one device; None = as many as its memory holds
    eval_every: int = 500  # steps between validations; 0 = at the end only
    eval_tokens: int = 200 * 12 * 1024  # validation tokens to measure on, at most
    save_every: int = 500  # steps between checkpoints; 0 = at the end only
    keep: int = 2  # newest checkpoints that stay, and the one of the lowest val_bpb; 0 = all
    seed: int = 0  # seed of the initial weights, and of how a single text is cut into rows
    compile: bool | None = None  # compile the model; None = on GPUs, and on CPUs where the stage is long enough
    profile: bool = False  # write a trace of the sixth to eighth step to the stage's folder
    dry_run: bool = False  # only print what the run would take: parameters, FLOPs, steps, memory, time and cost
    wandb: bool = False  # log to Weights & Biases (the driver's WANDB_* variables reach the workers)
    tensorboard: bool = False  # log to the stage's folder for TensorBoard
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, n_layer=1, n_head=1, n_embd=1, sequence_len=1, batch_tokens=1, steps=1, eval_tokens=1, seed=0)
        at_least(self, dropout=0, final_lr=0, warmup_steps=0, beta2=0, weight_decay=0)
        above(self, lr=0)
        at_most(self, seed=MAX_SEED, final_lr=1, beta2=0.9999)


SHAKESPEARE_CHAR_GPU: dict[str, Any] = {
    "n_layer": 6, "n_head": 6, "n_embd": 384, "sequence_len": 256, "dropout": 0.2,
    "batch_tokens": 64 * 256, "steps": 5000, "lr": 1e-3, "eval_every": 250,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "n_layer": 12, "n_head": 12, "n_embd": 768, "sequence_len": 1024,
    "data": ("openwebtext",), "tokenizer": "gpt2", "batch_tokens": 480 * 1024, "steps": 600_000,
    "lr": 6e-4, "warmup_steps": 2000, "beta2": 0.95, "eval_every": 1000, "save_every": 1000,
}  # fmt: skip
SHAKESPEARE: dict[str, Any] = {
    "init_from": "gpt2-xl", "sequence_len": 1024, "dropout": 0.1, "batch_tokens": 32 * 1024, "steps": 20,
    "lr": 3e-5, "final_lr": 1.0, "warmup_steps": 0, "beta2": 0.95, "eval_every": 5, "save_every": 0,
}  # fmt: skip


def preset(args: Args) -> Args:
    """Return the settings with all that the preset sets in their place."""
    shakespeare_char = SHAKESPEARE_CHAR_GPU if args.preset == "shakespeare-char" and args.cluster.gpus() else {}
    presets = {"shakespeare-char": shakespeare_char, "gpt2": GPT2, "shakespeare": SHAKESPEARE}
    return replace(args, **presets[args.preset])


def run(args: Args) -> dict[str, Any]:
    """Train the model, or find that it is trained, and print what it writes; return the stage's summary.

    Raises:
        ValueError: a setting does not fit the data or the checkpoint to start from, the run has other settings, or
            GPT-2's tokenizer could not be downloaded.
        ConnectionError: the data could not be downloaded.
    """
    from functools import partial

    from raychat.cluster.launch import train_on_tokens
    from raychat.data import corpus
    from raychat.data.pack import Packing, pretraining
    from raychat.engine.sampling import SamplingParams
    from raychat.evals.evaluation import LoadedModel
    from raychat.evals.samples import sampled
    from raychat.report import dry_run
    from raychat.train.token_feed import TokenSource

    parent = parent_of(args)
    tokenizer = tokenizer_of(args, parent)
    stage = stage_of(args, tokenizer, parent)
    num_shards = corpus.shards_needed(args.data, args.steps * args.batch_tokens)
    if args.dry_run:
        return dry_run.show(stage, args.cluster.max_workers, corpus.described(args.data, stage.storage, num_shards))
    tokenizer.save_once(args.cluster.run_folder(run_of(args), "tokenizer"))

    def packings() -> tuple[Packing, Packing]:
        return pretraining(args.data, tokenizer, args.sequence_len, stage.storage, num_shards)

    source = partial(TokenSource, max_val_rows=max(1, args.eval_tokens // args.sequence_len))
    summary = train_on_tokens(stage, packings, args.cluster, source=source)
    params = SamplingParams(0.8, top_k=200, max_new_tokens=500, seed=0)
    for text in sampled(LoadedModel.load(summary["checkpoint"]), "", 2, params):
        print(text, end="\n---------------\n")
    print(f"gpt2: {summary['checkpoint']} val_loss {summary['val_loss']:.4f} val_bpb {summary['val_bpb']:.4f}")
    return summary


def run_of(args: Args) -> str:
    return args.run or args.preset


def parent_of(args: Args) -> str | None:
    """Return the checkpoint to start from, which becomes a run of its own where it is another project's.

    Raises:
        ValueError: There is none, or not one of a GPT-2.
    """
    from raychat import checkpoint, paths, runs
    from raychat.interchange.importing import import_run

    if args.init_from is None:
        return None
    storage = args.cluster.storage()
    named = (runs.checkpoint_named(storage, id) for id in (f"{args.init_from}-base", args.init_from))
    found = next((found.path for found in named if found), paths.absolute(args.init_from))
    if not paths.exists(paths.join(found, paths.LAST_FILE)):
        if args.dry_run:
            raise ValueError(f"--dry-run writes nothing: import {args.init_from} first (jobs/import_checkpoint.py)")
        found = import_run(args.init_from, storage, paths.name(args.init_from).removesuffix(".pt"), "base")
    model = checkpoint.read_meta(found).recipe.model
    if model["class"] != "GPT2" or args.sequence_len > model["sequence_len"]:
        raise ValueError(
            f"--init-from {args.init_from} is a {model['class']} with a context of {model['sequence_len']}; expected a "
            f"GPT2 with one of at least --sequence-len {args.sequence_len}"
        )
    return found


def tokenizer_of(args: Args, parent: str | None) -> "Tokenizer":
    """Return the tokenizer that the settings name, or the one of the checkpoint to start from."""
    from raychat import checkpoint, paths
    from raychat.data import corpus, reading
    from raychat.interchange.tokenizers import gpt2_tokenizer, read_tokenizer
    from raychat.tokenizer import Tokenizer

    if parent is not None:
        return checkpoint.load_tokenizer(parent)
    if args.tokenizer is None:
        return Tokenizer.load(args.cluster.run_folder(run_of(args), "tokenizer"))
    if args.tokenizer == "characters":
        shards = corpus.shards(args.data, args.cluster.storage())
        if not corpus.one_text(shards):
            raise ValueError(f"--tokenizer characters needs --data of one text file, got {', '.join(args.data)}")
        return Tokenizer.of_characters(*reading.part_of_text(shards[0], 0.0, 1.0))
    return gpt2_tokenizer() if args.tokenizer == "gpt2" else read_tokenizer(paths.absolute(args.tokenizer))


def stage_of(args: Args, tokenizer: "Tokenizer", parent: str | None) -> "Stage":
    """Return the stage.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    from functools import partial

    from raychat import checkpoint, paths
    from raychat.model import registry
    from raychat.optim import schedule
    from raychat.recipe import Recipe, Runtime
    from raychat.train.stage import Stage

    if args.batch_tokens % args.sequence_len:
        raise ValueError(f"--batch-tokens is {args.batch_tokens}; expected a multiple of {args.sequence_len} (a row)")
    sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    sizes |= {name: getattr(args, name) for name in ("n_layer", "n_head", "n_embd", "sequence_len", "dropout")}
    model = registry.architecture("GPT2", **sizes)
    if parent is not None:
        model = checkpoint.read_meta(parent).recipe.model | {name: sizes[name] for name in ("sequence_len", "dropout")}
    storage = args.cluster.storage()
    recipe = Recipe(
        model=model,
        batch_tokens=args.batch_tokens,
        lr_scale=1.0,
        adamw={name: getattr(args, name) for name in ("lr", "beta2", "weight_decay")},
        schedule={"warmup_steps": args.warmup_steps, "final": args.final_lr},
        steps=args.steps,
        seed=args.seed,
        parent=None if parent is None else paths.relative(parent, storage),
        tokenizer=tokenizer.fingerprint,
        data=args.data,
    )
    return Stage(
        name=f"{run_of(args)}/base",
        storage=storage,
        recipe=recipe,
        schedule=partial(schedule.cosine, warmup_steps=args.warmup_steps, final=args.final_lr),
        runtime=Runtime.of(args),
        fresh=True,
    )


def parse(argv: Sequence[str] | None = None) -> Args:
    """Read the command line: first the preset's name, then what is given besides."""
    import tyro

    return tyro.cli(Args, args=argv, default=preset(tyro.cli(Args, args=argv, description=__doc__)))


if __name__ == "__main__":
    run(parse())

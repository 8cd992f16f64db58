"""Supervised fine-tuning: train on the assistant's tokens alone, conversations packed whole and padded.

Architecture, rates and the optimizer's momenta come from the parent checkpoint: the midtrained model, or the base model
where there is none.
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
    run: str = "tiny"  # name of the run whose model is taken
    # what is trained on, names of docs/data.md; NAME*3 repeats one, `then` stands
    # between what is mixed and what is mixed after it
    tasks: tuple[str, ...] = (
        "conversations",
        "mmlu*3",
        "gsm8k*4",
        "identity",
        "simple-spelling",
        "spelling-bee",
    )
    task_data: str = "tinyworld"  # tinyworld, hub (Hugging Face), or a folder in the layouts of docs/data.md
    steps: int | None = None  # optimizer steps; None = one pass over the data
    batch_tokens: int | None = None  # tokens per optimizer step; None = the base run's
    device_rows: int | None = None  # rows of a micro-batch on one device; None = as many as its memory holds
    lr: float = 0.8  # peak learning rate, as a factor on the base run's rates; it falls to 0 over the last half
    eval_every: int = 100  # steps between validations; 0 = at the end only
    save_every: int = 100  # steps between checkpoints; 0 = at the end only
    keep: int = 2  # newest checkpoints that stay, and the one of the lowest val_bpb; 0 = all, to chat with every age
    seed: int = 1  # seed of the order of the data
    parent: str | None = None  # checkpoint to start from; None = the run's latest mid, else base checkpoint
    compile: bool | None = None  # compile the model; None = on GPUs, and on CPUs where the stage is long enough
    activation_budget: float = 1.0  # share of the activations that a compiled step keeps; less = more rows, slower
    fp8: bool = False  # multiply in 8 bits in training, on GPUs from compute capability 8.9 on (L4, H100)
    profile: bool = False  # write a trace of the sixth to eighth step to the stage's folder
    dry_run: bool = False  # only print what the stage would take: parameters, FLOPs, steps, memory, time and cost
    wandb: bool = False  # log to Weights & Biases (the driver's WANDB_* variables reach the workers)
    tensorboard: bool = False  # log to the stage's folder for TensorBoard
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch_tokens=1, seed=0)
        above(self, lr=0)
        at_most(self, seed=MAX_SEED)


def run(args: Args) -> dict[str, Any]:
    """Fine-tune, or find that it is done; return the stage's summary."""
    from functools import partial

    from raychat.cluster.launch import train_on_tokens
    from raychat.report import dry_run
    from raychat.train.finetune import described, packings

    stage = stage_of(args)
    if args.dry_run:
        return dry_run.show(stage, args.cluster.max_workers, described(stage))
    return train_on_tokens(stage, partial(packings, stage, masked=True), args.cluster)


def stage_of(args: Args, planned: "Recipe | None" = None) -> "Stage":
    """Return the stage. planned: the recipe of a parent without a checkpoint yet; None = the checkpoint has it."""
    from functools import partial

    from raychat.optim import schedule
    from raychat.recipe import Runtime
    from raychat.train.finetune import recipe_of
    from raychat.train.stage import Stage

    return Stage(
        name=f"{args.run}/sft",
        storage=args.cluster.storage(),
        recipe=recipe_of(args, ("mid", "base"), planned),
        schedule=partial(schedule.sft, peak=args.lr),
        runtime=Runtime.of(args),
    )


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

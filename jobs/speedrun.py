"""The whole road in one command: tokenizer, base, mid, SFT, RL, each evaluated, and a report card.

    python jobs/speedrun.py --preset tiny --cluster.workers 2          seven to thirteen minutes on two CPU cores
    python jobs/speedrun.py --preset d24 --cluster.workers 8           the GPT-2 run on one node of 8 H100
    ray job submit --working-dir . -- python jobs/speedrun.py --preset d32 --cluster.workers 32

This file is the table of contents: every step is a job that also runs alone. Killed at any moment, the same command
continues: it skips the steps that are finished, and resumes the one that was running from its last checkpoint.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jobs import base_eval, base_train, chat_eval, mid_train, report, rl_train, sft_train, tok_eval, tok_train
from raychat.cluster import Cluster
from raychat.settings import MAX_SEED, at_least, at_most


class Pipeline(NamedTuple):
    """The settings of every step, in order."""

    tok_train: tok_train.Args
    tok_eval: tok_eval.Args
    base_train: base_train.Args
    base_eval: base_eval.Args
    mid_train: mid_train.Args
    sft_train: sft_train.Args
    rl_train: rl_train.Args
    chat_eval: chat_eval.Args  # of mid, SFT and RL alike
    report: report.Args


# ---------------------------------------------------------------------------------------------- presets


def tiny() -> Pipeline:
    """1.6 million parameters on tinyworld: seven to thirteen minutes for two workers on two CPU cores."""
    return Pipeline(
        tok_train.Args(vocab_size=1024),
        tok_eval.Args(),
        base_train.Args(
            depth=5,
            width=128,  # cheaper than three layers of the usual width, and as good (docs/LOG.md)
            sequence_len=256,
            batch_tokens=1024,  # many small steps: copying, which much builds on, is learned by their number
            steps=700,
            lr_scale=1.2,  # the rule's least, 0.4, is timid for a few hundred small steps
            eval_every=200,
            core_items=60,
            save_every=100,
            keep=0,  # to talk to the model at every age
            eval_tokens=60_000,
        ),
        base_eval.Args(max_items=60, eval_tokens=60_000),
        # short and gentle: what is not in it, such as copying, is forgotten
        mid_train.Args(tasks=("conversations", "gsm8k", "spelling-bee"), steps=120, lr=0.35),
        sft_train.Args(
            # choices are compared with the question only once a model has seen little else for a while
            tasks=("arc-easy", "then", "arc-easy*3", "mmlu*3", "conversations*3", "gsm8k*2", "spelling-bee*6"),
            steps=1000,
            batch_tokens=2048,
            keep=0,
            lr=0.4,
        ),
        rl_train.Args(
            tasks=("gsm8k", "spelling-bee"), steps=20, samples=8, questions_per_call=8, lr=0.1, max_new_tokens=96
        ),
        chat_eval.Args(max_problems=100),
        report.Args(),
    )


def cpu() -> Pipeline:
    """The same on a larger model, trained for half an hour on two cores."""
    small = tiny()
    return small._replace(
        base_train=dataclasses.replace(
            small.base_train, depth=6, width=192, steps=2000, eval_every=400, save_every=400
        ),
        mid_train=dataclasses.replace(small.mid_train, steps=250),
        sft_train=dataclasses.replace(
            small.sft_train,
            tasks=(*small.sft_train.tasks[:-1], "spelling-bee*3"),  # six times gave fewer marks (docs/LOG.md)
            steps=1800,
            eval_every=400,
            save_every=400,
        ),
    )


def _hub(depth: int, ratio: float = 12.0) -> Pipeline:
    """The recipe's run of a depth on the hub's data; everything else is derived."""
    return Pipeline(
        tok_train.Args(data=("climbmix",), num_shards=9),
        tok_eval.Args(data=("climbmix",), num_shards=9),
        base_train.Args(data=("climbmix",), depth=depth, ratio=ratio, core_items=100),
        base_eval.Args(max_items=500),
        mid_train.Args(task_data="hub"),
        sft_train.Args(task_data="hub"),
        rl_train.Args(task_data="hub"),
        chat_eval.Args(task_data="hub"),
        report.Args(),
    )


def d20() -> Pipeline:
    """About 900M parameters, half of them value embeddings."""
    return _hub(20)


def d24() -> Pipeline:
    """The size of nanochat's GPT-2 run: CORE above GPT-2 1.6B's 0.2565, which takes it two hours of 8 x H100, $48."""
    return _hub(24, ratio=8.0)


def d32() -> Pipeline:
    """About 2.8B parameters, 1.1B of them value embeddings."""
    return _hub(32)


PRESETS = {"tiny": tiny, "cpu": cpu, "d20": d20, "d24": d24, "d32": d32}

# ---------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Args:
    """What is not given is the preset's."""

    preset: Literal["tiny", "cpu", "d20", "d24", "d32"] = "tiny"  # pipeline that all settings start from
    run: str | None = None  # name of the run; None = the preset's name
    data: tuple[str, ...] | None = None  # pretraining corpus, as for base_train
    task_data: str | None = None  # tinyworld, hub, or a folder of data sets
    bundle: str | None = None  # CORE's bundle: tinyworld, or a folder in the DCLM layout
    depth: int | None = None  # layers; width, batch, rates and length of training follow
    vocab_size: int | None = None  # of the tokenizer, special tokens included
    sequence_len: int | None = None  # context in tokens
    base_steps: int | None = None  # optimizer steps of pretraining
    mid_tasks: tuple[str, ...] | None = None  # what mid trains on; NAME*3 repeats it
    mid_steps: int | None = None  # optimizer steps of midtraining
    sft_tasks: tuple[str, ...] | None = None  # what SFT trains on
    sft_steps: int | None = None  # optimizer steps of fine-tuning
    rl_steps: int | None = None  # optimizer steps of reinforcement
    rl_max_new_tokens: int | None = None  # longest answer in reinforcement, in tokens
    eval_tasks: tuple[str, ...] | None = None  # what the chat models are evaluated on
    max_problems: int | None = None  # problems of each chat task, and items of each CORE task, at most
    seed: int | None = None  # of the first weights, the order of the data, and the answers in reinforcement
    price_per_hour: float | None = None  # US dollars for all machines together, for the cost in the report
    dry_run: bool = False  # only print what base, mid and SFT would take: FLOPs, memory, time and cost
    wandb: bool = False  # log the stages to Weights & Biases (the driver's WANDB_* variables reach the workers)
    tensorboard: bool = False  # log to the stages' folders for TensorBoard
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, base_steps=1, mid_steps=1, sft_steps=1, rl_steps=1, rl_max_new_tokens=1, max_problems=1, seed=0)
        at_most(self, seed=MAX_SEED)


def pipeline(args: Args) -> Pipeline:
    """Return the preset's pipeline with everything that was given put in its place."""
    shared = {"run": args.run or args.preset, "cluster": args.cluster}
    shared |= {"data": args.data, "task_data": args.task_data, "seed": args.seed}
    shared |= {"wandb": args.wandb, "tensorboard": args.tensorboard}
    own: dict[str, dict[str, Any]] = {
        "tok_train": {"vocab_size": args.vocab_size},
        "base_train": {
            "depth": args.depth,
            "sequence_len": args.sequence_len,
            "steps": args.base_steps,
            "bundle": args.bundle,
        },
        "base_eval": {"bundle": args.bundle, "max_items": args.max_problems},
        "mid_train": {"tasks": args.mid_tasks, "steps": args.mid_steps},
        "sft_train": {"tasks": args.sft_tasks, "steps": args.sft_steps},
        "rl_train": {"steps": args.rl_steps, "max_new_tokens": args.rl_max_new_tokens},
        "chat_eval": {"tasks": args.eval_tasks, "max_problems": args.max_problems},
        "report": {"price_per_hour": args.price_per_hour},
    }
    steps = PRESETS[args.preset]()._asdict()
    return Pipeline(**{name: with_settings(step, shared, own.get(name, {})) for name, step in steps.items()})


def with_settings(step: Any, shared: dict[str, Any], own: dict[str, Any]) -> Any:
    """Replace settings of a step by those that are not None: the shared ones that it has, and all of its own.

    Raises:
        ValueError: The step has no setting of an own name.
    """
    names = {f.name for f in dataclasses.fields(step)}
    if unknown := own.keys() - names:
        raise ValueError(f"{type(step).__module__} has no setting {', '.join(sorted(unknown))}")
    settings = {name: value for name, value in shared.items() if name in names} | own
    return dataclasses.replace(step, **{name: value for name, value in settings.items() if value is not None})


def run(args: Args) -> dict[str, Any]:
    """Run the pipeline, or what is left of it; return the report."""
    if args.dry_run:
        return dry_run(args)

    from raychat.cluster.workers import shared_workers

    steps = pipeline(args)
    check_tasks(steps)
    began = time.monotonic()

    tok_train.run(steps.tok_train)
    tok_eval.run(steps.tok_eval)

    with shared_workers(args.cluster):
        base_train.run(steps.base_train)
        base_eval.run(steps.base_eval)

        mid_train.run(steps.mid_train)
        chat_eval.run(dataclasses.replace(steps.chat_eval, stage="mid"))

        sft_train.run(steps.sft_train)
        chat_eval.run(dataclasses.replace(steps.chat_eval, stage="sft"))

        rl_train.run(steps.rl_train)
        chat_eval.run(dataclasses.replace(steps.chat_eval, stage="rl"))

    card = report.run(steps.report)
    print(
        f"speedrun: done in {time.monotonic() - began:.0f} s; talk to it: python jobs/serve.py --run {steps.report.run}"
    )
    return card


def check_tasks(steps: Pipeline) -> None:
    """Check the names of all tasks now, and not when a stage begins, hours later. Raises ValueError."""
    from raychat import tasks

    tasks.in_turns(steps.mid_train.tasks)
    tasks.in_turns(steps.sft_train.tasks)
    for entry in steps.rl_train.tasks:
        tasks.name_and_repeat(entry)
    for name in steps.chat_eval.tasks or ():
        tasks.find(name)


def dry_run(args: Args) -> dict[str, Any]:
    """Print what base, mid and SFT will take; return their figures. How long RL takes depends on its answers."""
    from raychat import checkpoint
    from raychat.report import dry_run
    from raychat.train.finetune import described
    from raychat.train.stage import Stage

    steps = pipeline(args)
    check_tasks(steps)
    folder = args.cluster.run_folder(steps.tok_train.run, "tokenizer")

    def unless_trained(stage: str, figures: dict[str, Any]) -> Any:
        """Return the recipe of a stage that the next one starts from; None where a checkpoint has it."""
        trained = checkpoint.latest(args.cluster.run_folder(steps.report.run, stage))
        return None if trained else figures["recipe"]

    def child(stage: Stage) -> dict[str, Any]:
        return dry_run.show(stage, args.cluster.max_workers, described(stage), args.price_per_hour)

    tok_train.finished(folder, tok_train.settings_of(steps.tok_train), overwrite=False)
    base = base_train.dry_run(steps.base_train, steps.tok_train.vocab_size, args.price_per_hour)
    mid = child(mid_train.stage_of(steps.mid_train, unless_trained("base", base)))
    sft = child(sft_train.stage_of(steps.sft_train, unless_trained("mid", mid)))
    print("RL and the evaluations are not counted: how long they take depends on the length of answers.")
    return {"base": base, "mid": mid, "sft": sft}


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

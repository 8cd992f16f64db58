"""What midtraining and SFT share: data from tasks, a parent checkpoint, and the token stage on the workers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raychat import checkpoint, paths, tasks
from raychat.cluster import Cluster
from raychat.cluster.launch import launch
from raychat.cluster.prepare import conversations, prepare
from raychat.data import corpus
from raychat.data.shards import TokenRows
from raychat.model.gpt import GPTConfig
from raychat.optim.schedule import Schedule
from raychat.tasks import Problem
from raychat.train.stage import finished
from raychat.train.token_stage import TokenStage, train_on_rows

_VAL_FRAC = 0.02  # of the conversations of each task are held out, at least _MIN_VAL in all
_MIN_VAL = 50


class Args(Protocol):
    """The settings that both jobs have."""

    @property
    def run(self) -> str: ...
    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def task_data(self) -> str: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def batch_tokens(self) -> int | None: ...
    @property
    def device_rows(self) -> int | None: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def cluster(self) -> Cluster: ...


def finetune(
    args: Args,
    *,
    stage: str,
    parents: Sequence[str],
    schedule: Callable[[int], Schedule],
    whole_rows: bool,
) -> dict[str, Any]:
    """Train a stage on conversations, or find that it is trained; return its summary.

    Args:
        args: the job's own settings.
        stage: its name and folder in the run.
        parents: stages whose newest checkpoint it starts from, the first that the run has.
        schedule: from the number of steps.
        whole_rows: loss on every token of full rows, as in pretraining; else on the assistant's tokens alone.
    """
    cluster, storage = args.cluster, args.cluster.storage()
    folder = cluster.run_folder(args.run, stage)
    parent = paths.absolute(args.parent or checkpoint.latest_of(cluster.run_folder(args.run), parents))
    meta = checkpoint.read_meta(parent)
    inherited = meta["settings"]
    architecture = GPTConfig(**{k: v for k, v in meta["model"].items() if k != "class"})
    settings = {k: v for k, v in dataclasses.asdict(args).items() if k != "cluster"}  # type: ignore[call-overload]
    settings |= {"parent": parent, "batch_tokens": args.batch_tokens or inherited["batch_tokens"]}
    settings |= {"lr_scale": inherited["lr_scale"]}
    if (summary := finished(folder, settings)) is not None:
        print(f"{stage}: {args.run} is trained already: {summary['checkpoint']}")
        return summary

    tokenizer = checkpoint.load_tokenizer(parent)
    problems, held_out = load_mixture(args.tasks, corpus.task_root(args.task_data, storage), args.seed)
    train, val = (
        conversations(part, tokenizer, architecture.sequence_len, storage, masked=not whole_rows)
        for part in (problems, held_out)
    )
    for part in (val, train):
        prepare(part, cluster)
    rows_per_step = max(1, settings["batch_tokens"] // architecture.sequence_len)
    steps = args.steps or max(1, TokenRows(train.folder).num_rows() // rows_per_step)
    print(f"{stage}: {len(problems)} conversations, {steps} steps of {rows_per_step} rows, from {parent}")
    work = TokenStage(
        name=f"{args.run}/{stage}",
        folder=folder,
        tokenizer=paths.join(parent, "tokenizer"),
        rows=train.folder,
        val_rows=val.folder,
        architecture=architecture,
        steps=steps,
        rows_per_step=rows_per_step,
        schedule=schedule,
        lr_scale=inherited["lr_scale"],
        weight_decay=0.0,
        parent=parent,
        seed=args.seed,
        device_rows=args.device_rows,
        eval_every=args.eval_every,
        save_every=args.save_every,
        settings=settings,
    )
    return launch(train_on_rows, work, name=work.name, steps=steps, cluster=cluster)


def load_mixture(names: Sequence[str], root: str, seed: int) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Load training tasks and mix them; `gsm8k*4` takes one four times. Return what to train and what to validate on.

    Raises:
        ValueError: no such task, no data for it, no whole number behind the `*`, or too few problems in all.
    """
    parts = []
    for entry in names:
        name, star, repeat = entry.partition("*")
        if star and not repeat.isdigit():
            raise ValueError(f"task {entry!r}: expected NAME or NAME*N with a whole number N, such as gsm8k*4")
        parts.append((tasks.load(name, root, "train"), int(repeat) if star else 1))
    total = sum(len(task.problems) for task, _ in parts)
    if total < 2 * _MIN_VAL:
        raise ValueError(
            f"{', '.join(names)} have {total} conversations together, expected {2 * _MIN_VAL} or more: {_MIN_VAL} are "
            "held out for validation; name more --tasks"
        )
    halves = [tasks.hold_out(task, max(_VAL_FRAC, _MIN_VAL / total)) for task, _ in parts]
    train = [(part, repeat) for (part, _), (_, repeat) in zip(halves, parts, strict=True)]
    return tasks.mixture(train, seed), tasks.mixture([(part, 1) for _, part in halves], seed)

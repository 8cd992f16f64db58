"""Reinforce: let the fine-tuned model answer questions with a checkable answer, and make what earned reward likelier.

Rollout actors answer with the current weights, train workers take the step; with --ahead they do so at the same time.
Architecture and rates come from the parent checkpoint. Killed at any moment, the same command resumes from the last
checkpoint. docs/reinforcement.md has the algorithms.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from raychat.cluster import Cluster
from raychat.settings import MAX_SEED, above, at_least, at_most


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run whose model is taken
    tasks: tuple[str, ...] = ("gsm8k",)  # whose training problems are asked, names of docs/data.md; NAME*3 repeats one
    task_data: str = "tinyworld"  # tinyworld, hub (Hugging Face), or a folder in the layouts of docs/data.md
    reward: str | None = None  # module:function of (problem, text of the answer) -> number; None = the task's own
    algorithm: Literal["reinforce", "grpo", "dr-grpo", "rloo", "dapo"] = "reinforce"  # how rewards become weights
    kl: float = 0.0  # weight of the KL divergence from the parent; 0 = none, the parent is not loaded
    ahead: int = 0  # steps whose questions are answered while the learner takes a step; 0 = in step, reproducible
    steps: int | None = None  # optimizer steps; None = one pass over the problems
    questions_per_step: int = 16  # problems asked in a step
    samples: int = 16  # answers to each problem
    max_new_tokens: int = 256  # longest answer, in tokens
    temperature: float = 1.0  # of sampling: higher is more varied
    top_k: int = 50  # sample only among the k most likely tokens
    lr: float = 0.05  # learning rate of the first step, as a factor on the base run's rates; it falls linearly to 0
    device_rows: int | None = None  # rows of a micro-batch on one device, if all fill the context; None = by its memory
    eval_every: int = 60  # steps between evaluations; 0 = at the end only
    num_eval: int = 64  # held-out problems in an evaluation; 0 = none
    save_every: int = 60  # steps between checkpoints; 0 = at the end only
    keep: int = 2  # newest checkpoints that stay, and the one of the highest val_reward; 0 = all
    rollout_workers: int | None = None  # actors that answer; 0 = the train workers do; None = by what the cluster has
    questions_per_call: int = 2  # questions that an actor answers at once, each with all its samples
    seed: int = 0  # seed of the order of the problems and of sampling
    parent: str | None = None  # checkpoint to start from; None = the run's latest sft, else mid checkpoint
    profile: bool = False  # write a trace of the sixth to eighth step to the stage's folder
    wandb: bool = False  # log to Weights & Biases (the driver's WANDB_* variables reach the workers)
    tensorboard: bool = False  # log to the stage's folder for TensorBoard
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, steps=1, questions_per_step=1, max_new_tokens=1, top_k=1, num_eval=0, seed=0)
        at_least(self, rollout_workers=0, questions_per_call=1, kl=0, ahead=0)
        at_least(self, samples=2)  # an answer is judged against the others to its question
        above(self, temperature=0, lr=0)
        at_most(self, seed=MAX_SEED)


def sampling_of(args: Args) -> dict[str, Any]:
    """Return what the recipe records of sampling; choices that are the usual ones stay unsaid, as they always were."""
    from raychat.recipe import SAMPLING

    usual, choices = Args(), ("reward", "algorithm", "kl", "ahead")
    unusual = [name for name in choices if getattr(args, name) != getattr(usual, name)]
    return {name: getattr(args, name) for name in (*SAMPLING, *unusual)}


def validation_of(parent: str) -> dict[str, Any]:
    """Return the folder of the rows that the parent was validated on, None where it is gone, and their unigram bpb."""
    from raychat import paths
    from raychat.train.finished import summary_of

    summary, storage = summary_of(parent), parent.rsplit("/runs/", 1)[0]
    rows = paths.under(storage, summary["val_rows"]) if "val_rows" in summary else None
    return {"val_rows": rows if rows and paths.exists(rows) else None, "unigram_bpb": summary.get("unigram_bpb")}


def run(args: Args) -> dict[str, Any]:
    """Reinforce, or find that it is done; return the stage's summary."""
    from functools import partial

    from raychat.cluster.launch import launch
    from raychat.cluster.rollout import num_actors, rollout_pool
    from raychat.data import corpus
    from raychat.engine.sampling import SamplingParams
    from raychat.optim import schedule
    from raychat.recipe import Runtime
    from raychat.rl.algorithms import find_algorithm
    from raychat.rl.feed import RolloutSource
    from raychat.rl.reward import load_reward, task_for
    from raychat.rl.sampler import Sampler
    from raychat.train.finetune import child_recipe, parent_of
    from raychat.train.finished import finished
    from raychat.train.stage import Stage

    cluster, storage = args.cluster, args.cluster.storage()
    reward = None if args.reward is None else load_reward(args.reward)
    parent = parent_of(args, ("sft", "mid"))
    stage = Stage(
        name=f"{args.run}/rl",
        storage=storage,
        recipe=child_recipe(parent, storage, args, sampling=sampling_of(args)),
        schedule=partial(schedule.linear_to_zero, peak=args.lr),
        runtime=Runtime.of(args),
        fresh=True,
        matrices_only=True,
    )
    if (summary := finished(stage.folder, stage.recipe)) is not None:
        return summary

    root = corpus.task_root(args.task_data, storage)
    task = task_for(args.tasks, root, "train", reward)
    steps = args.steps if args.steps is not None else max(1, len(task.problems) // args.questions_per_step)
    source = RolloutSource(
        task=partial(task_for, args.tasks, root, "train", reward),
        params=SamplingParams(args.temperature, args.top_k, max_new_tokens=args.max_new_tokens),
        questions_per_step=args.questions_per_step,
        samples=args.samples,
        questions_per_call=args.questions_per_call,
        val_task=partial(task_for, args.tasks, root, "test", reward),
        num_eval=args.num_eval,
        **validation_of(parent),
        algorithm=find_algorithm(args.algorithm, args.kl),
        ahead=args.ahead,
    )
    actors = num_actors(cluster, args.rollout_workers, source.calls_per_step, ahead=args.ahead > 0)
    print(
        f"rl: {len(task.problems)} problems of {task.name}, {steps} steps of {args.questions_per_step} x "
        f"{args.samples} answers by {actors or 'no'} rollout actors, from {parent}"
    )
    build = partial(Sampler.load, parent, task.reward, source.params, source.max_sequences)
    with rollout_pool(build, cluster, actors) as pool:
        stage = dataclasses.replace(stage, steps=steps, source=dataclasses.replace(source, pool=pool))
        summary = launch(stage, cluster)
    print(f"rl: mean reward {summary['reward_first']:.3f} -> {summary['reward_last']:.3f}, {summary['checkpoint']}")
    return summary


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

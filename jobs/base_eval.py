"""Evaluate a base model: bits per byte of validation text, CORE, and the continuation of a few texts.

    python jobs/base_eval.py --run tiny
    python jobs/base_eval.py --run d20 --bundle /data/eval_bundle --max-items 500 --cluster.workers 8

The run's newest base checkpoint is evaluated; the figures go to runs/<run>/base/eval.json.
"""

from dataclasses import dataclass, field
from typing import Any

from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run
    bundle: str = "tinyworld"  # CORE's tasks: tinyworld, or a folder with core.yaml, eval_meta_data.csv and eval_data/
    tasks: tuple[str, ...] | None = None  # labels of the bundle's tasks; None = all, empty = no CORE
    max_items: int | None = None  # items of each task, the same ones every time; None = all
    data: tuple[str, ...] | None = None  # corpus whose last shard is read, or a text file; None = what was trained on
    eval_tokens: int = 80 * 524288  # validation tokens to measure on, at most
    prompts: tuple[str, ...] | None = None  # texts to continue; None = the beginnings of validation documents
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, max_items=1, eval_tokens=1)


def run(args: Args) -> dict[str, Any]:
    """Evaluate, unless eval.json holds figures of this checkpoint and these settings; return its content.

    Raises:
        ValueError: there is no base checkpoint.
        FileNotFoundError: the bundle does not exist.
    """
    from functools import partial

    from raychat import checkpoint, paths
    from raychat.cluster.map import actors_per_worker
    from raychat.cluster.prepare import prepare
    from raychat.data import corpus
    from raychat.data.pack import pretraining
    from raychat.evals import samples
    from raychat.evals.bpb import bpb_evaluation
    from raychat.evals.bundle import load_bundle
    from raychat.evals.core import core_evaluation
    from raychat.evals.evaluation import Evaluation
    from raychat.evals.run import evaluate_stage

    storage = args.cluster.storage()

    def describe(path: str) -> list[Evaluation]:
        recipe, tokenizer = checkpoint.read_meta(path).recipe, checkpoint.load_tokenizer(path)
        data, sequence_len = args.data or recipe.data, recipe.sequence_len
        _, val = pretraining(data, tokenizer, sequence_len, storage, num_shards=1)  # whatever was trained on
        rows = prepare(val, args.cluster)
        if (prompts := args.prompts) is None:
            prompts = samples.beginnings(map(str, val.read(val.blocks[0])), tokenizer)
        bpb = bpb_evaluation(rows, max_rows=max(1, args.eval_tokens // sequence_len))
        return [bpb, *core(), samples.continuations(prompts)]

    def core() -> list[Evaluation]:
        if args.tasks == ():
            return []
        if args.bundle == "tinyworld":
            bundle = paths.join(corpus.tinyworld_root(storage), "eval_bundle")
        else:  # actors have another working folder
            bundle = paths.absolute(args.bundle)
        return [core_evaluation(load_bundle(bundle, args.tasks), args.max_items)]

    settings = {
        "bundle": args.bundle,
        "tasks": args.tasks,
        "max_items": args.max_items,
        "data": args.data,
        "eval_tokens": args.eval_tokens,
        "prompts": args.prompts,
    }
    found = evaluate_stage(
        args.cluster.run_folder(args.run, "base"), settings, describe, partial(actors_per_worker, args.cluster)
    )
    for label, task in found.get("core_tasks", {}).items():
        accuracy, centred = task["accuracy"], task["centred"]
        print(f"  {label:40} accuracy {accuracy:.4f}  centred {centred:+.4f}  ({task['num_items']} items)")
    figures = " ".join(f"{name} {found[name]:.4f}" for name in ("val_bpb", "val_loss", "core") if name in found)
    print(f"base_eval: {args.run} {figures} in {found['wall_s']:.0f} s")
    return found


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

"""Evaluate a base model: bits per byte of validation text, CORE, and the continuation of a few texts.

    python jobs/base_eval.py --run tiny
    python jobs/base_eval.py --run d20 --bundle /data/eval_bundle --max-items 500 --cluster.workers 8

The run's newest base checkpoint is evaluated; the figures go to runs/<run>/base/eval.json.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raychat.cluster import Cluster
from raychat.evals.questions import QUESTIONS
from raychat.settings import at_least

if TYPE_CHECKING:
    from raychat.evals.evaluation import Evaluation
    from raychat.recipe import Recipe


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run
    bundle: str = "tinyworld"  # CORE's tasks: tinyworld, or a folder with core.yaml, eval_meta_data.csv and eval_data/
    tasks: tuple[str, ...] | None = None  # labels of the bundle's tasks; None = all, empty = no CORE
    max_items: int | None = None  # items of each task, the same ones every time; None = all
    contamination: int | None = None  # words of an n-gram, such as 13, by which items are found in the training text
    protocol: Literal["raychat", "nanochat"] = "raychat"  # how CORE's items and examples are drawn
    data: tuple[str, ...] | None = None  # corpus whose last shard is read, or a text file; None = what was trained on
    eval_tokens: int = 80 * 524288  # validation tokens to measure on, at most
    prompts: tuple[str, ...] | None = None  # texts to continue; None = the beginnings of validation documents
    questions: tuple[str, ...] = QUESTIONS  # continued, too, as plain text: the chat models' answers stand beside
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, max_items=1, eval_tokens=1, contamination=8)


def run(args: Args) -> dict[str, Any]:
    """Evaluate, unless eval.json holds figures of this checkpoint and these settings; return its content.

    Raises:
        ValueError: there is no base checkpoint.
        FileNotFoundError: the bundle does not exist.
    """
    from functools import partial

    from raychat import checkpoint
    from raychat.cluster.map import actors_per_worker
    from raychat.cluster.prepare import prepare
    from raychat.data.pack import pretraining
    from raychat.evals import samples
    from raychat.evals.accuracy import between, details
    from raychat.evals.bpb import bpb_evaluation
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
        return [bpb, *core_of(args, recipe), samples.continuations(prompts, questions=args.questions)]

    settings = {
        "bundle": args.bundle,
        "tasks": args.tasks,
        "max_items": args.max_items,
        "data": args.data,
        "eval_tokens": args.eval_tokens,
        "prompts": args.prompts,
    }
    if args.contamination is not None:  # an eval.json from before this setting still counts
        settings["contamination"] = args.contamination
    if args.protocol != "raychat":
        settings["protocol"] = args.protocol
    if args.questions != QUESTIONS:
        settings["questions"] = args.questions
    found = evaluate_stage(
        args.cluster.run_folder(args.run, "base"), settings, describe, partial(actors_per_worker, args.cluster)
    )
    for label, task in found.get("core_tasks", {}).items():
        accuracy, centred = task["accuracy"], task["centred"]
        items = f"({task['num_items']} items)"
        print(f"  {label:40} accuracy {accuracy:.4f}{between(found, label)}  centred {centred:+.4f}  {items}")
    print(*details(found), sep="\n")
    names = [name for name in ("val_bpb", "val_loss", "core") if name in found]
    figures = " ".join(f"{name} {found[name]:.4f}{between(found, name)}" for name in names)
    print(f"base_eval: {args.run} {figures} in {found['wall_s']:.0f} s")
    return found


def core_of(args: Args, recipe: "Recipe") -> list["Evaluation"]:
    """Describe CORE on a model of this recipe, with the check of its items if asked for; nothing without tasks."""
    from functools import partial

    from raychat.cluster.map import actors_per_core
    from raychat.data import corpus
    from raychat.evals import contamination
    from raychat.evals.bundle import load_bundle
    from raychat.evals.core import core_evaluation, texts
    from raychat.evals.protocol import PROTOCOLS

    if args.tasks == ():
        return []
    storage = args.cluster.storage()
    tasks, protocol = load_bundle(corpus.bundle_root(args.bundle, storage), args.tasks), PROTOCOLS[args.protocol]
    evaluation = core_evaluation(tasks, args.max_items, protocol)
    if args.contamination is None:
        return [evaluation]
    shards, scan = contamination.training_shards(recipe, storage), partial(actors_per_core, args.cluster)
    of_items = texts(tasks, args.max_items, protocol)
    return [contamination.checked(evaluation, of_items, shards, scan, args.contamination)]


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

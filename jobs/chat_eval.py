"""Evaluate a chat model on tasks: multiple choice by the letters' logits, the others by generating answers.

    python jobs/chat_eval.py --run tiny --stage sft
    python jobs/chat_eval.py --run d20 --stage rl --tasks gsm8k humaneval --task-data hub --cluster.workers 8

The stage's newest checkpoint is evaluated; the figures go to runs/<run>/<stage>/eval.json.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from raychat.cluster import Cluster
from raychat.evals.questions import QUESTIONS
from raychat.settings import at_least

TASKS = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval", "spelling-bee")


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run
    stage: Literal["mid", "sft", "rl"] = "sft"  # which model of the run
    tasks: tuple[str, ...] | None = None  # tasks to evaluate on; None = those of ChatCORE's six whose data is there
    task_data: str = "tinyworld"  # tinyworld, hub (Hugging Face), or a folder in the layouts of docs/data.md
    max_problems: int | None = None  # problems of each task, the same ones every time; None = all
    temperature: float = 0.0  # of sampling answers; 0 = always the most likely token
    num_samples: int = 1  # answers to each problem; their mean reward counts, and pass@k is reported
    max_new_tokens: int | None = None  # longest answer, in tokens; None = the task's own: 512 for HumanEval, else 256
    contamination: int | None = None  # words of an n-gram, such as 13, by which problems are found in pretraining text
    protocol: Literal["raychat", "nanochat"] = "raychat"  # how multiple choice is worded; nanochat for its checkpoints
    questions: tuple[str, ...] = QUESTIONS  # shown with their answers
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, max_problems=1, temperature=0, num_samples=1, max_new_tokens=1, contamination=8)


def run(args: Args) -> dict[str, Any]:
    """Evaluate, unless eval.json holds figures of this checkpoint and these settings; return its content.

    Raises:
        ValueError: the stage has no checkpoint, or a task of `--tasks` has no data.
    """
    from functools import partial

    from raychat import checkpoint
    from raychat.cluster.map import actors_per_core, actors_per_worker
    from raychat.data import corpus
    from raychat.evals import chat, contamination, samples, suggestions
    from raychat.evals.accuracy import between, details
    from raychat.evals.evaluation import Evaluation
    from raychat.evals.protocol import PROTOCOLS
    from raychat.evals.run import evaluate_stage
    from raychat.recipe import Recipe

    storage = args.cluster.storage()

    def base() -> Recipe:
        folder = args.cluster.run_folder(args.run, "base")
        if (path := checkpoint.latest(folder)) is None:
            raise ValueError(f"--contamination needs the text of the base stage, but {folder} has no checkpoint")
        return checkpoint.read_meta(path).recipe

    def describe(path: str) -> list[Evaluation]:
        root = corpus.task_root(args.task_data, storage)
        names = args.tasks if args.tasks is not None else chat.available(TASKS, root)
        wording = PROTOCOLS[args.protocol].wording
        sampling = chat.Sampling(args.temperature, args.num_samples, args.max_new_tokens)
        evaluation = chat.chat_evaluation(
            names, root, max_problems=args.max_problems, sampling=sampling, wording=wording
        )
        if args.contamination is not None:
            texts, shards = chat.texts(names, root, args.max_problems), contamination.training_shards(base(), storage)
            scan = partial(actors_per_core, args.cluster)
            evaluation = contamination.checked(evaluation, texts, shards, scan, args.contamination)
        return [evaluation, samples.replies(args.questions), suggestions.suggestions(root, args.questions)]

    settings = {
        "tasks": args.tasks,
        "task_data": args.task_data,
        "max_problems": args.max_problems,
        "temperature": args.temperature,
        "num_samples": args.num_samples,
        "questions": args.questions,
    }
    newer = {"max_new_tokens": None, "contamination": None, "protocol": "raychat"}  # an older eval.json still counts
    settings |= {name: getattr(args, name) for name, default in newer.items() if getattr(args, name) != default}
    found = evaluate_stage(
        args.cluster.run_folder(args.run, args.stage), settings, describe, partial(actors_per_worker, args.cluster)
    )
    for name, accuracy in found["accuracy"].items():
        chance, num = found["chance"][name], found["num_problems"][name]
        print(f"  {name:20} {accuracy:.4f}{between(found, name)}  (guessing {chance:.2f}, {num} problems)")
    print(*details(found), sep="\n")
    core = f"{found['chatcore']:.4f}{between(found, 'chatcore')}"
    print(f"chat_eval: {args.run}/{args.stage} ChatCORE {core} in {found['wall_s']:.0f} s")
    return found


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

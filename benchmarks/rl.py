"""Samples per second with rollouts ahead of the learner, against in step with it.

    RAYCHAT_HOME=... .venv/bin/python benchmarks/rl.py --run tiny

Both reinforce the run's SFT model by some steps, in turns and under run names of their own, so that other load of the
machine hits both. `split` has one train worker and one rollout actor, each with a core: in step, one of the two always
waits. `shared` in step has two train workers and two actors, which take turns on two cores. The first two steps of each
run, in which actors start, do not count, nor does the last. The last line is JSON.
"""

import json
import shutil
import statistics
from dataclasses import dataclass, field
from typing import Any

import tyro

from jobs import rl_train
from raychat.cluster import Cluster
from raychat.log import read_metrics


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # run whose SFT model is taken
    steps: int = 8  # of each run; the first two and the last are not counted
    questions_per_step: int = 16
    samples: int = 8  # answers to each question
    max_new_tokens: int = 96  # longest answer
    repeats: int = 2  # rounds
    parent: str | None = None  # checkpoint to start from; None = the run's latest
    cluster: Cluster = field(default_factory=Cluster)


CONTENDERS: dict[str, dict[str, Any]] = {
    "split_in_step": {"workers": 1, "actors": 1, "ahead": 0},
    "split_ahead_1": {"workers": 1, "actors": 1, "ahead": 1},
    "shared_in_step": {"workers": 2, "actors": 2, "ahead": 0},
}


def main(args: Args) -> None:
    """Time all contenders, round after round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for repeat in range(args.repeats):
        for name, settings in CONTENDERS.items():
            found[name].append(measured(args, f"bench-{name}", repeat, **settings))
            print(name, found[name][-1], flush=True)
    best = {name: max(row["samples_per_s"] for row in rows) for name, rows in found.items()}
    result = {
        "benchmark": "rl",
        "samples_per_s": best,
        "ahead_over_in_step": {
            name: round(best["split_ahead_1"] / best[name], 3) for name in best if name != "split_ahead_1"
        },
        "rounds": found,
    }
    print(json.dumps(result))


def measured(args: Args, run: str, seed: int, *, workers: int, actors: int, ahead: int) -> dict[str, float]:
    """Reinforce for some steps; return the speed and what the rows say, as means over the counted steps."""
    parent = args.parent or latest_parent(args)
    folder = args.cluster.run_folder(run, "rl")
    shutil.rmtree(folder, ignore_errors=True)
    rl_train.run(
        rl_train.Args(
            run=run,
            parent=parent,
            steps=args.steps,
            questions_per_step=args.questions_per_step,
            samples=args.samples,
            questions_per_call=-(-args.questions_per_step // actors),
            max_new_tokens=args.max_new_tokens,
            num_eval=0,
            lr=0.1,
            rollout_workers=actors,
            ahead=ahead,
            seed=seed,
            cluster=Cluster(workers=workers, storage_path=args.cluster.storage_path),
        )
    )
    rows = [row for row in read_metrics(folder) if "reward" in row]
    counted = rows[2:-1]  # the last step has a scoring pass in step, too
    seconds = counted[-1]["t"] - rows[1]["t"]
    samples = len(counted) * args.questions_per_step * args.samples
    means = {name: round(statistics.mean(row[name] for row in counted), 3) for name in ("waiting", "rollout_s")}
    return {"samples_per_s": round(samples / seconds, 2), "step_s": round(seconds / len(counted), 3), **means}


def latest_parent(args: Args) -> str:
    from raychat import checkpoint

    return checkpoint.latest_of(args.cluster.run_folder(args.run), ("sft", "mid"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

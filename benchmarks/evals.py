"""Time the tiny run's evaluations, this version's beside another's: chat tasks with 100 problems, CORE with 60 items.

    .venv/bin/python benchmarks/evals.py RUN_FOLDER [OTHER_CHECKOUT]

RUN_FOLDER is that of a finished tiny run, such as ~/.cache/raychat/runs/tiny. Each version has a process of its own
with one thread, without Ray; they take turns, and each loads its model anew in every turn. Times are medians of wall
clock and of the process's CPU seconds. The last line is JSON, with the ratios, and whether all figures are the same.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 3
FIGURES = ("accuracy", "chatcore", "core", "core_tasks", "samples")
REPOSITORY = Path(__file__).resolve().parent.parent


def main(run: str, *others: str) -> None:
    """Time this version and others, by the folders of their checkouts."""
    versions = [str(REPOSITORY), *others]
    workers = [_start(version, run) for version in versions]
    parts = ("chat", "core")
    turns: dict[str, list[list[dict[str, Any]]]] = {part: [[] for _ in versions] for part in parts}
    for _ in range(ROUNDS):
        for part in parts:
            for number, worker in enumerate(workers):
                turns[part][number].append(_ask(worker, part))
    for worker in workers:
        worker.communicate()
    result: dict[str, Any] = {"versions": versions}
    for part, of_versions in turns.items():
        for clock in ("wall_s", "cpu_s"):
            medians = [statistics.median(turn[clock] for turn in of_version) for of_version in of_versions]
            print(f"{part:5} {clock:7}", *(f"{seconds:8.2f}" for seconds in medians))
            result[f"{part}_{clock}"] = [round(seconds, 3) for seconds in medians]
            result[f"{part}_{clock}_ratios"] = [round(seconds / medians[0], 2) for seconds in medians]
        figures = [turn["figures"] for of_version in of_versions for turn in of_version]
        result[f"{part}_same_figures"] = all(found == figures[0] for found in figures)
    print(json.dumps(result))


def _start(version: str, run: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--work", run]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": version}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(worker: subprocess.Popen[str], part: str) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(part, file=worker.stdin, flush=True)
    for line in worker.stdout:
        if line.startswith("{"):
            turn: dict[str, Any] = json.loads(line)
            return turn
    raise RuntimeError(f"the worker has ended with {worker.wait()}")


def work(run: str) -> None:
    """Evaluate what each line of the standard input names, and print times and figures."""
    import torch

    from raychat import checkpoint
    from raychat.actors import InProcess
    from raychat.evals import bundle, chat, core, samples
    from raychat.evals.questions import QUESTIONS
    from raychat.evals.run import evaluate

    torch.set_num_threads(1)
    data = str(Path(run).parent.parent / "data" / "tinyworld")
    tasks = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval", "spelling-bee")
    beginnings = ("The cat", "In the morning", "Tom has", "Question:", "Rosa is", "There are")
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        if line.strip() == "chat":
            stage = "sft"
            evaluations = [chat.chat_evaluation(tasks, data, max_problems=100), samples.replies(QUESTIONS)]
        else:
            stage = "base"
            of_core = core.core_evaluation(bundle.load_bundle(f"{data}/eval_bundle"), 60)
            evaluations = [of_core, samples.continuations(beginnings)]
        path = checkpoint.latest(str(Path(run) / stage))
        assert path is not None
        found = evaluate(path, evaluations, lambda build, num_calls, name: InProcess(build))
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(spent | {"figures": {name: found[name] for name in FIGURES if name in found}}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(sys.argv[2])
    else:
        main(*sys.argv[1:])

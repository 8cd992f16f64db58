"""Run evaluations over actors, each holding one `LoadedModel`; the figures do not depend on how many there are."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from raychat import checkpoint, paths
from raychat.actors import Actors
from raychat.evals.evaluation import Evaluation, LoadedModel
from raychat.log import Progress

OpenActors = Callable[..., Actors]  # (build, num_calls, name=) -> actors that hold what `build()` returns


def evaluate(path: str, evaluations: Sequence[Evaluation], open_actors: OpenActors) -> dict[str, Any]:
    """Evaluate the checkpoint at `path`; return the figures of all evaluations, joined.

    The calls are spread over actors, which must all be able to read `path`.
    """
    checkpoint.read_meta(path)
    calls = [call for evaluation in evaluations for call in evaluation.calls]
    name = f"evaluate {', '.join(evaluation.name for evaluation in evaluations)}"
    actors = open_actors(partial(LoadedModel.load, path), len(calls), name=name)
    with closing(actors), Progress(name, len(calls)) as progress:
        results = list(progress.track(actors.map(lambda loaded, call: call(loaded), calls)))
    found: dict[str, Any] = {}
    for evaluation in evaluations:
        mine, results = results[: len(evaluation.calls)], results[len(evaluation.calls) :]
        figures = evaluation.finish(mine)
        if twice := found.keys() & figures.keys():
            raise ValueError(f"two evaluations give {', '.join(sorted(twice))}")
        found |= figures
    return found


def evaluate_stage(
    folder: str, settings: dict[str, Any], describe: Callable[[str], Sequence[Evaluation]], open_actors: OpenActors
) -> dict[str, Any]:
    """Evaluate a stage's newest checkpoint and write `eval.json` into its folder, unless it is there already.

    Return what the file holds: the figures, `checkpoint`, `step`, `settings` and `wall_s`.

    Args:
        settings: what the figures depend on besides the checkpoint; plain values.
        describe: from the checkpoint's path to its evaluations; called only when there is something to do.
    """
    path = checkpoint.latest(folder)
    if path is None:
        raise ValueError(f"no checkpoint in {folder} to evaluate; train that stage first, or name another --run")
    asked = json.loads(json.dumps({"checkpoint": paths.name(path), "settings": settings}))
    file = paths.join(folder, "eval.json")
    if paths.exists(file):
        done: dict[str, Any] = paths.read_json(file)
        if asked.items() <= done.items():
            print(f"evaluated already: {file}")
            return done
    started = time.monotonic()
    found = evaluate(path, describe(path), open_actors)
    facts = {"step": checkpoint.read_meta(path).step, "wall_s": round(time.monotonic() - started, 3)}
    result = {**asked, **facts, **found}
    paths.write_json(file, result)
    return result

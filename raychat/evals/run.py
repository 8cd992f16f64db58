"""Run evaluations over actors, each holding one `LoadedModel`; the figures do not depend on how many there are."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from raychat import checkpoint, paths
from raychat.actors import Actors
from raychat.evals.evaluation import Call, Evaluation, LoadedModel
from raychat.log import Progress

OpenActors = Callable[..., Actors]  # (build, num_calls, name=) -> actors that hold what `build()` returns


def evaluate(path: str, evaluations: Sequence[Evaluation], open_actors: OpenActors) -> dict[str, Any]:
    """Evaluate the checkpoint at `path`; return the figures of all evaluations, joined, and `seconds` by part.

    The calls are spread over actors, which must all be able to read `path`; the longest are made first.

    Raises:
        ValueError: two evaluations give the same figure.
    """
    checkpoint.read_meta(path)
    calls = [call for evaluation in evaluations for call in evaluation.calls]
    order = sorted(range(len(calls)), key=lambda i: -calls[i].cost)
    name = f"evaluate {', '.join(evaluation.name for evaluation in evaluations)}"
    actors = open_actors(partial(LoadedModel.load, path), len(calls), name=name)
    with closing(actors), Progress(name, len(calls)) as progress:
        made = progress.track(actors.map(_timed, [calls[i] for i in order]))
        timed = dict(zip(order, made, strict=True))
    seconds = dict.fromkeys((call.part for call in calls), 0.0)
    for i, call in enumerate(calls):
        seconds[call.part] = round(seconds[call.part] + timed[i][0], 3)
    results, found = [timed[i][1] for i in range(len(calls))], {"seconds": seconds}
    for evaluation in evaluations:
        mine, results = results[: len(evaluation.calls)], results[len(evaluation.calls) :]
        found = _joined(found, evaluation.finish(mine))
    return found


def _timed(loaded: LoadedModel, call: Call) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    started = time.perf_counter()
    result = call(loaded)
    return time.perf_counter() - started, result


def _joined(some: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Join figures; those that are dicts of figures by name are joined, too."""
    both = some.keys() & more.keys()
    if twice := [name for name in sorted(both) if not isinstance(some[name], dict)]:
        raise ValueError(f"two evaluations give {', '.join(twice)}")
    return some | more | {name: _joined(some[name], more[name]) for name in both}


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

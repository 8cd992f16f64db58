"""What the storage says of a stage: whether it is finished, the one that is asked for, and seen by all workers."""

import uuid
from typing import Any

from raychat import checkpoint, dist, paths
from raychat.recipe import Recipe, differences


def finished(folder: str, recipe: Recipe) -> dict[str, Any] | None:
    """Return the summary of a finished stage, or None where it is not finished.

    Raises:
        ValueError: The folder holds a stage of another recipe.
    """
    last = checkpoint.latest(folder)
    if last is None:
        return None
    meta = checkpoint.read_meta(last)
    check_recipe(folder, meta.recipe, recipe)
    summary = summary_of(last)
    if not summary or meta.step < summary.get("steps", 0):  # its last checkpoint was damaged since
        return None
    print(f"finished already: {last}")
    return summary | {"checkpoint": last}  # the storage may have been moved


def summary_of(path: str) -> dict[str, Any]:
    """Return the summary of the stage that a checkpoint belongs to; empty for a checkpoint that stands alone."""
    file = paths.join(paths.parent(path), "summary.json")
    return paths.read_json(file) if paths.exists(file) else {}


def check_recipe(folder: str, there: Recipe, now: Recipe) -> None:
    """Raise ValueError where a stage on the storage has another recipe than is asked for now."""
    if different := differences(there, now):
        raise ValueError(
            f"{folder} has another recipe ({', '.join(different)}); choose another --run or remove that folder"
        )


def check_shared(folder: str) -> None:
    """Check, before anything is trained, that all workers share one storage. Every worker must call it.

    Raises:
        ValueError: Some worker does not see what rank 0 writes to the folder.
    """
    probe = paths.join(folder, f".tmp-probe-{dist.gather(uuid.uuid4().hex)[0]}")
    dist.on_rank_0(lambda: paths.write_text(probe, ""))
    try:
        check_seen(probe, f"what worker 0 writes to {folder}")
    finally:
        dist.on_rank_0(lambda: paths.remove(probe))


def check_seen(path: str, what: str) -> None:
    """Check that all workers see a file or folder. Every worker must call it. Raises ValueError where some do not."""
    seen = dist.together(lambda: paths.exists(path))
    if blind := [rank for rank, sees_it in enumerate(seen) if not sees_it]:
        raise ValueError(
            f"{', '.join(map(str, blind))} of {len(seen)} workers do not see {what}; set --cluster.storage-path to a "
            "folder or bucket that all machines share"
        )

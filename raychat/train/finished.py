"""What the storage says of a stage: whether it is finished, and whether it is the one that is asked for."""

from typing import Any

from raychat import checkpoint, paths
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
    return summary


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

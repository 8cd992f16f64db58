"""What `meta.json` says of a checkpoint: read, checked, of this format or of format 1."""

import dataclasses
from typing import Any

from raychat import paths
from raychat.checkpoint.checksums import Checksum, Damaged
from raychat.model.registry import MODELS
from raychat.recipe import Recipe, Runtime, from_format_1

FORMAT = 2
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a checkpoint."""

    step: int
    recipe: Recipe
    runtime: Runtime = Runtime()  # noqa: RUF009 (frozen)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # latest evaluation; what the stage has counted
    wall_s: float = 0.0  # spent on the stage so far
    commit: str | None = None  # of the code that wrote it
    files: dict[str, Checksum] = dataclasses.field(default_factory=dict)  # all but meta.json; empty = older than this


def read_meta(path: str) -> Meta:
    """Return a checkpoint's meta.json, of this format or of format 1.

    Raises:
        ValueError: `path` is not a checkpoint, or not of a format that this version reads.
    """
    meta = read_record(path)
    number = meta.get("format") if isinstance(meta, dict) else None
    try:
        if number == 1:
            recipe, runtime = from_format_1(meta["model"], meta["settings"], meta.get("parent"))
            runtime = dataclasses.replace(runtime, workers=meta.get("workers"))
        elif number == FORMAT:
            recipe, runtime = Recipe.from_json(meta["recipe"]), Runtime(**meta["runtime"])
        else:
            raise ValueError(f"format {number!r}")
        if recipe.model.get("class") not in MODELS:
            raise ValueError(f"model class {recipe.model.get('class')!r}")
        rest = {key: meta[key] for key in ("metrics", "wall_s", "commit") if key in meta}
        return Meta(meta["step"], recipe, runtime, **rest, files=recorded_files(meta))
    except (KeyError, TypeError, ValueError) as error:
        file = paths.join(path, paths.LAST_FILE)
        raise ValueError(f"{file} is not of raychat's checkpoint format {FORMAT} or 1: {error!r}") from error


def read_record(path: str) -> Any:
    """Return what a checkpoint's meta.json holds. Raises ValueError where there is none, Damaged where it is torn."""
    file = paths.join(path, paths.LAST_FILE)
    try:
        return paths.read_json(file)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not a checkpoint, or was not written to its end: it has no {paths.LAST_FILE}; expected one "
            "such as runs/tiny/sft/step_000100"
        ) from None
    except ValueError as error:
        raise Damaged(f"{file}: got {error}, expected JSON") from error


def recorded_files(meta: Any) -> dict[str, Checksum]:
    """Return the checksums in the content of a meta.json; empty where an older version wrote it, or a foreign one."""
    if not isinstance(meta, dict) or "files" not in meta:
        return {}
    try:
        return {name: Checksum(**values) for name, values in meta["files"].items()}
    except (AttributeError, TypeError) as error:
        raise Damaged(f"its record of files is not one of raychat: {error}") from error

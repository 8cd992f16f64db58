"""Where a task's rows come from: files in the data sets' own layouts, or the Hugging Face hub."""

import gzip
import json
from collections.abc import Sequence
from typing import Any, cast

from datasets.load import load_dataset

from raychat import paths

HUB = "hub"  # the root that stands for the data sets on the Hugging Face hub
Row = dict[str, Any]


def local_rows(root: str, *names: str, layout: str) -> list[Row]:
    """Read the rows of a JSON-lines file (gzipped if its name ends in .gz) at `root`/`names`.

    Raises:
        ValueError: the file is absent, empty or no JSON lines; the message says the path and the expected `layout`.
    """
    path = paths.join(root, *names)
    if not paths.exists(path):
        raise ValueError(
            f"no such file: {path}; expected JSON lines of {layout}, or the data root {HUB!r} to download them"
        )
    data = paths.read_bytes(path)
    text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8")
    try:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON lines ({error}); expected {layout}") from error
    if not rows:
        raise ValueError(f"{path} is empty; expected JSON lines of {layout}")
    return rows


def hub_rows(repo: str, config: str | None, split: str) -> Sequence[Row]:
    """Return a split of a data set of the hub, downloaded once by `datasets`; rows are read when asked for."""
    return cast(Sequence[Row], load_dataset(repo, config, split=split))


def one_of(split: str, allowed: Sequence[str], task: str) -> str:
    """Return `split` if the task has it.

    Raises:
        ValueError: it has not.
    """
    if split not in allowed:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(allowed)}")
    return split

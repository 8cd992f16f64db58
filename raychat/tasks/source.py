"""Where a task's rows come from: files in the data sets' own layouts, or the Hugging Face hub."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from datasets.load import load_dataset

from raychat import paths
from raychat.tasks.task import Problem

HUB = "hub"  # the root that stands for the data sets on the Hugging Face hub
Row = dict[str, Any]
_SHOWN_BYTES = 200  # of a line, in an error


def local_rows(root: str, *names: str, layout: str, make: Callable[[Row], Problem]) -> list[Row]:
    """Read the rows of a JSON-lines file (gzipped if its name ends in .gz) at `root`/`names`; `make` must take each.

    Raises:
        ValueError: the file is absent, empty or damaged, or a line is no JSON or in another layout; the message says
            the path, the line, what it holds and the expected `layout`.
    """
    path = paths.join(root, *names)
    if not paths.exists(path):
        raise ValueError(
            f"no such file: {path}; expected JSON lines of {layout}, or the data root {HUB!r} to download them"
        )
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON in UTF-8 ({error}); {_told(line, layout)}") from error
        try:
            make(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} has another layout ({error!r}); {_told(line, layout)}") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty; expected JSON lines of {layout}")
    return rows


def _lines(path: str) -> list[bytes]:
    data = paths.read_bytes(path)
    if path.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no gzip file ({error}); expected one, as its name ends in .gz") from error
    return data.split(b"\n")


def _told(line: bytes, layout: str) -> str:
    return f"expected {layout}, got {line[:_SHOWN_BYTES].decode('utf-8', 'replace')!r}"


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

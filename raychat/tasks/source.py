"""Problems from the data sets' own rows: of the Hugging Face hub, or of files in the same layouts."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from datasets.load import load_dataset

from raychat import paths
from raychat.tasks.task import Lazy, Problem

HUB = "hub"  # the root that stands for the Hugging Face hub
Row = dict[str, Any]
_SHOWN_BYTES = 200  # of a line, in an error


def load_problems(
    root: str, hub: tuple[str, str | None, str], file: str, layout: str, make: Callable[[Row], Problem]
) -> Sequence[Problem]:
    """Return the problems that `make` makes of a data set's rows.

    Args:
        hub: repository, config and split.
        layout: of a row, for messages.
    """
    return hub_problems(*hub, make) if root == HUB else file_problems(paths.join(root, file), layout, make)


def hub_problems(repo: str, config: str | None, split: str, make: Callable[[Row], Problem]) -> Sequence[Problem]:
    """Return a split of a data set of the hub, which `datasets` downloads once; rows are read when asked for."""
    rows = cast(Sequence[Row], load_dataset(repo, config, split=split))
    return Lazy(len(rows), lambda i: make(rows[i])._replace(source=f"{repo}, {split}, row {i}"))


def file_problems(path: str, layout: str, make: Callable[[Row], Problem]) -> list[Problem]:
    """Return the problems of a JSON-lines file, gzipped if its name ends in .gz.

    Raises:
        ValueError: the file is absent, empty or damaged, or a line is not JSON or has another layout.
    """
    if not paths.exists(path):
        raise ValueError(
            f"no such file: {path}; expected JSON lines of {layout}, or the data root {HUB!r} to download them"
        )
    problems = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        source = f"{path}, line {number}"
        got = f"expected {layout}, got {line[:_SHOWN_BYTES].decode('utf-8', 'replace')!r}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{source} is not JSON in UTF-8, or cut short ({error}); {got}") from error
        try:
            problems.append(make(row)._replace(source=source))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{source} has another layout ({error!r}); {got}") from error
    if not problems:
        raise ValueError(f"{path} is empty; expected JSON lines of {layout}")
    return problems


def _lines(path: str) -> list[bytes]:
    data = paths.read_bytes(path)
    if path.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is no gzip file, damaged or cut short ({error}); expected a whole file, get it again"
            ) from error
    return data.split(b"\n")


def one_of(split: str, allowed: Sequence[str], task: str) -> None:
    """Raise ValueError if the task does not have the split."""
    if split not in allowed:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(allowed)}")

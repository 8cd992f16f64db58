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
    root: str, *, hub: tuple[str, str | None, str], file: Sequence[str], layout: str, make: Callable[[Row], Problem]
) -> Sequence[Problem]:
    """Return the problems made of a data set's rows: of the hub's when `root` is "hub", else of a file below `root`.

    Args:
        root: "hub", or a local or remote folder.
        hub: repository, config and split.
        file: the parts of the file's path below `root`, see `file_problems`.
        layout: of a row, for messages.
        make: makes a problem from a row.
    """
    return hub_problems(*hub, make) if root == HUB else file_problems(paths.join(root, *file), layout, make)


def hub_problems(repo: str, config: str | None, split: str, make: Callable[[Row], Problem]) -> Sequence[Problem]:
    """Return a split of a data set of the hub, which `datasets` downloads once; rows are read when asked for."""
    rows = cast(Sequence[Row], load_dataset(repo, config, split=split))

    def problem(index: int) -> Problem:
        return make(rows[index])._replace(source=f"{repo}, {split}, row {index}")

    return Lazy(len(rows), problem)


def file_problems(path: str, layout: str, make: Callable[[Row], Problem]) -> list[Problem]:
    """Return the problems of a JSON-lines file, gzipped if its name ends in .gz.

    Raises:
        ValueError: the file is absent, empty or damaged, or a line is not JSON or has another layout. The message holds
            the path, the line, its beginning and the expected layout.
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
            raise ValueError(f"{source} is not JSON in UTF-8 ({error}); {got}") from error
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
            raise ValueError(f"{path} is no gzip file ({error}); expected one, as its name ends in .gz") from error
    return data.split(b"\n")


def one_of(split: str, allowed: Sequence[str], task: str) -> str:
    """Return `split`.

    Raises:
        ValueError: the task does not have it.
    """
    if split not in allowed:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(allowed)}")
    return split

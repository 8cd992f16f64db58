"""Where text for the tokenizer and for pretraining comes from: the shards of a corpus, in a fixed order.

The command line names a corpus by one or more of
    tinyworld                    the small invented world of this package, written when first used
    climbmix, fineweb-edu, openwebtext
                                 the hub's pretraining corpora; a shard is downloaded when it is read
    tinyshakespeare              one text of a million characters, downloaded when first named
    a folder, a file, a pattern  of .parquet, .jsonl or .txt (.gz, .zst), on this machine or remote (s3://, gs://)
The last shard is for validation; of a single .txt file its last tenth.
"""

import glob
import hashlib
import os
import posixpath
from collections.abc import Sequence

from raychat import paths, tinyworld
from raychat.data.hub import HUB, TEXTS, fetch_text, hub_shards, source, text_path
from raychat.data.reading import KINDS

_HASHED_BYTES = 16 << 20  # of the largest local shard that is read to name its version


def shards(data: Sequence[str], storage: str, num_shards: int | None = None) -> list[str]:
    """Return the absolute paths or URLs of a corpus's shards: in the order given, by name within a folder.

    Downloads nothing but tinyshakespeare.

    Args:
        data: names as above.
        storage: the folder or URL that data/ is in.
        num_shards: how many shards to train on, the first ones; None = all. The last one, for validation, always stays.

    Raises:
        ValueError: a name does not exist, has no shards, or is given twice.
    """
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"num_shards is {num_shards}; expected 1 or more")
    found = [shard for entry in data for shard in _resolve(entry, storage)]
    _check_distinct(found)
    return found if num_shards is None else [*found[:-1][:num_shards], *found[-1:]]


def shards_needed(data: Sequence[str], tokens: int) -> int | None:
    """Return how many training shards of a hub corpus surely hold `tokens` tokens; None (all) for any other data."""
    if len(data) != 1 or not (hub := HUB.get(data[0])):
        return None
    return min(hub.num_shards - 1, -(-tokens * 8 // hub.shard_bytes))  # at 8 characters per token


def check(shards: Sequence[str]) -> None:
    """Check that a corpus has something to train on and something to validate on. Raises ValueError as `split`."""
    if not one_text(shards):
        split(shards)


def described(data: Sequence[str], storage: str, num_shards: int | None = None) -> str:
    """Say which shards there are to train on and to validate on. Downloads and writes nothing.

    Raises:
        ValueError: as `shards` and `check`.
    """
    if missing := [entry for entry in data if not _is_there(entry, storage)]:
        return f"{', '.join(data)}; {' and '.join(missing)} will be made or downloaded first"
    found = shards(data, storage, num_shards)
    check(found)
    if one_text(found):
        return f"{found[0]}, its end for validation"
    *train, val = found
    return f"{len(train):,} shards, {train[0]} to {paths.name(train[-1])}; {paths.name(val)} for validation"


def one_text(shards: Sequence[str]) -> bool:
    """Tell whether a corpus is a single text file, which is cut by characters into what is trained and validated on."""
    return len(shards) == 1 and shards[0].endswith(".txt")


def split(shards: Sequence[str], num_val: int = 1) -> tuple[list[str], list[str]]:
    """Return the shards to train on, and the last `num_val` for validation.

    Raises:
        ValueError: there are too few shards, or two of them are one file.
    """
    if len(shards) <= num_val or num_val < 1:
        raise ValueError(
            f"a corpus needs at least {max(num_val, 1) + 1} shards, {max(num_val, 1)} of them for validation, got "
            f"{len(shards)}: {', '.join(shards)}; name more files, or cut the file in two"
        )
    _check_distinct(shards)
    return list(shards[:-num_val]), list(shards[-num_val:])


def version(shard: str) -> str:
    """Return a string that changes when a shard's documents do, and not when the file is moved or renamed.

    It has the kind of the file, its size, and the sha256 of a local file of at most 16 MiB; for another file, its ETag
    or the time of its last change. A hub shard is named by its repository and file, downloaded or not.
    """
    if hub := source(shard):
        return f"{hub.repo}/{paths.name(shard)}"
    kind = next(kind for kind in KINDS if shard.endswith(kind))
    if not paths.is_local(shard) or (size := paths.size(shard)) > _HASHED_BYTES:
        return f"{kind}, {paths.version(shard)}"
    with open(shard, "rb") as f:
        return f"{kind}, {size} bytes, sha256 {hashlib.file_digest(f, 'sha256').hexdigest()}"


def tinyworld_root(storage: str) -> str:
    """Return the root of the tinyworld data in the storage; write the data first if it is missing."""
    root = paths.join(storage, "data", "tinyworld")
    if not tinyworld.complete(root):
        with paths.new_folder(root) as folder:
            tinyworld.write(folder)
    return root


def bundle_root(bundle: str, storage: str) -> str:
    """Return the folder of CORE's tasks: tinyworld's (written if missing), or the one that is named."""
    if bundle == "tinyworld":
        return paths.join(tinyworld_root(storage), "eval_bundle")
    return paths.absolute(bundle)  # workers and actors have another working folder


def task_root(task_data: str, storage: str) -> str:
    """Return the root for `tasks.load`: "hub" unchanged, tinyworld's root (written if missing), or a folder.

    Raises:
        ValueError: there is no such folder.
    """
    if task_data == "hub":
        return task_data
    if task_data == "tinyworld":
        return tinyworld_root(storage)
    if paths.is_folder(root := paths.absolute(task_data)):
        return root
    raise ValueError(
        f"--task-data is {task_data!r}; expected tinyworld, hub or a folder of data sets; {root} is not a folder"
    )


def _is_there(entry: str, storage: str) -> bool:
    """Tell whether `shards` lists this name as it is, and has nothing to write or to download for it."""
    if entry == "tinyworld":
        return tinyworld.complete(paths.join(storage, "data", "tinyworld"))
    return entry not in TEXTS or paths.exists(text_path(entry, storage))


def _resolve(entry: str, storage: str) -> list[str]:
    """Return the shards of one name."""
    if entry in HUB:
        return hub_shards(entry, storage)
    if entry == "tinyworld":
        return _in_folder(paths.join(tinyworld_root(storage), "pretrain"))
    if entry in TEXTS:
        return [fetch_text(entry, storage)]
    path = paths.absolute(entry)
    if any(c in path for c in "*?["):
        if found := [shard for shard in _glob(path) if shard.endswith(KINDS)]:
            return found
        raise ValueError(f"{entry} matches no file that ends in {', '.join(KINDS)}")
    if paths.is_folder(path):
        return _in_folder(path)
    if not paths.exists(path):
        names = ", ".join((*HUB, *TEXTS))
        raise ValueError(f"{entry} does not exist; expected a file, folder, pattern, tinyworld, or {names}")
    if not path.endswith(KINDS):
        raise ValueError(f"{entry} is of an unknown kind; expected a name that ends in {', '.join(KINDS)}")
    return [path]


def _in_folder(folder: str) -> list[str]:
    names = paths.names(folder)
    if found := [paths.join(folder, name) for name in names if name.endswith(KINDS)]:
        return found
    raise ValueError(
        f"{folder} holds no file that ends in {', '.join(KINDS)}; it holds {', '.join(names[:8]) or 'nothing'}"
    )


def _glob(pattern: str) -> list[str]:
    if paths.is_local(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    fs, p = paths.file_system(pattern)
    return sorted(fs.unstrip_protocol(path) for path in fs.glob(p))


def _check_distinct(shards: Sequence[str]) -> None:
    """Raise ValueError if two of the paths are one file, in whatever spelling."""
    seen: dict[object, str] = {}
    for shard in shards:
        if first := seen.get(file := _identity(shard)):
            raise ValueError(
                f"{shard} is given twice (first as {first}); expected every shard once, for training or validation"
            )
        seen[file] = shard


def _identity(path: str) -> object:
    """Return a value that is equal for two spellings of one file."""
    if not paths.is_local(path):
        scheme, _, rest = path.partition("://")
        return scheme, posixpath.normpath(rest.strip("/"))
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino  # the same through links
    except FileNotFoundError:
        return os.path.realpath(path)

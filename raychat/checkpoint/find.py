"""Which checkpoints a stage has, and whether they are what was written."""

import re
from collections.abc import Sequence
from functools import lru_cache

from raychat import dist, paths
from raychat.checkpoint import checksums
from raychat.checkpoint.checksums import Checksum, Damaged
from raychat.checkpoint.meta import read_record, recorded_files

_NAME = re.compile(r"step_(\d{6,})")


def all_in(folder: str) -> list[str]:
    """Return the checkpoints of a stage that have all their files in full size, oldest first; print what is skipped."""
    return [path for path in _folders(folder) if _is_whole(path)]


def latest(folder: str) -> str | None:
    """Return the newest checkpoint of a stage that has all its files in full size, or None; print what is skipped."""
    return next((path for path in reversed(_folders(folder)) if _is_whole(path)), None)


def latest_verified(folder: str) -> str | None:
    """Return the newest checkpoint of a stage whose files hold what was written, or None where none is complete.

    Every worker must call it and gets the same answer: rank 0 lists, and each worker reads its share of the files.

    Raises:
        ValueError: the stage has checkpoints, and all are damaged.
    """
    rank = dist.world().rank
    found = dist.together(lambda: [p for p in _folders(folder) if _is_complete(p)] if rank == 0 else [])[0]
    for path in reversed(found):
        try:
            verify(path)
        except Damaged as damage:
            if rank == 0:
                _say_skipped(path, str(damage))
        else:
            return path
    if found:
        raise ValueError(f"all checkpoints of {folder} are damaged; remove it to train the stage from its start")
    return None


def verify(path: str, *, optimizer: bool = True) -> None:
    """Check that a checkpoint's files hold what was written. Every worker must call it and reads its share of them.

    Args:
        optimizer: also read the optimizer's files.

    Raises:
        ValueError: it is not a checkpoint, or one that no version reads; `Damaged`, on all workers, names a file.
    """
    rank, size = dist.world()

    def check_share() -> str | None:
        try:
            files = sorted(_files(path).items(), key=lambda file: (not file[0].startswith("optimizer_"), file[0]))
            files = [file for file in files if optimizer or not file[0].startswith("optimizer_")]
            checksums.check_content(path, dict(files[rank::size]))  # its own optimizer file, to be loaded next
        except Damaged as damage:
            return str(damage)
        return None

    for damage in dist.together(check_share):
        if damage is not None:
            raise Damaged(damage)


def _folders(folder: str) -> list[str]:
    """Return all that is called like a checkpoint in a stage's folder, by step."""
    found = [(int(m[1]), n) for n in paths.names(folder) if (m := _NAME.fullmatch(n))]
    return [paths.join(folder, n) for _, n in sorted(found)]


def _is_complete(path: str) -> bool:
    """Tell whether a checkpoint was written to its end, and say where it was not."""
    complete = paths.exists(paths.join(path, paths.LAST_FILE))
    if not complete:
        _say_skipped(path, f"it has no {paths.LAST_FILE}")
    return complete


def _is_whole(path: str) -> bool:
    """Tell whether a checkpoint is complete and has all its files in full size, and say where it is not."""
    try:
        _files(path)
    except ValueError as error:
        _say_skipped(path, str(error))
        return False
    return True


@lru_cache(maxsize=1024)
def _say_skipped(path: str, reason: str) -> None:
    """Print it once a process: a server lists checkpoints every other second."""
    print(f"skipped checkpoint {path}: {reason}", flush=True)


def _files(path: str) -> dict[str, Checksum]:
    """Return the record of a checkpoint's files, which all have the recorded sizes. Raises ValueError otherwise."""
    files = recorded_files(read_record(path))
    checksums.check_sizes(path, files)
    return files


def latest_of(run_folder: str, stages: Sequence[str]) -> str:
    """Return the newest checkpoint of the first of these stages that a run has. Raises ValueError when it has none."""
    for stage in stages:
        if (path := latest(paths.join(run_folder, stage))) is not None:
            return path
    wanted = " or ".join(stages)
    raise ValueError(f"no checkpoint of {wanted} in {run_folder}; train that first (jobs/), or name another --run")

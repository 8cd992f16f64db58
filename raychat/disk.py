"""Caches on this machine's disk, each kept within its share."""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

IN_USE_S = 600.0  # what was used more recently stays
_SHARE = 10  # a cache may take a tenth of the disk


def make_room(folder: str, num_bytes: int) -> None:
    """Remove the least recently used files of a folder until `num_bytes` more fit into its share of the disk."""
    files = _by_age(folder)
    excess = _excess(folder, num_bytes, files)
    for used_at, size, file in files:
        if excess <= 0 or time.time() - used_at < IN_USE_S:
            return
        file.unlink(missing_ok=True)
        excess -= size


def empty_if_large(folder: str) -> None:
    """Empty a local folder whose files need each other, if it takes more than its share of the disk and is at rest."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no process begins to use it meanwhile
        files = _by_age(folder)
        if _excess(folder, 0, files) > 0 and time.time() - files[-1][0] >= IN_USE_S:
            shutil.rmtree(folder)


def _by_age(folder: str) -> list[tuple[float, int, Path]]:
    """Return (time of use, bytes, file) of the files below a folder, the oldest first."""
    files = []
    for file in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed by another process
            if not file.is_dir():
                files.append((file.stat().st_mtime, file.stat().st_size, file))
    return sorted(files)


def _excess(folder: str, num_bytes: int, files: list[tuple[float, int, Path]]) -> int:
    """Return how many bytes have to go before `num_bytes` more fit into the folder's share of the disk."""
    disk, there = shutil.disk_usage(folder), sum(size for _, size, _ in files)
    return num_bytes - min(disk.total // _SHARE - there, disk.free)

"""What the files of a folder must be: their sizes and sha256, recorded when they are written."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from raychat import paths


class Damaged(ValueError):
    """A file is missing, or is not what was written."""


@dataclass(frozen=True)
class Checksum:
    """What a file must be."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls(len(data), hashlib.sha256(data).hexdigest())


def write(folder: str, name: str, data: bytes) -> dict[str, Checksum]:
    """Write a file of a folder; return its checksum by its name."""
    paths.write_bytes(paths.join(folder, name), data)
    return {name: Checksum.of(data)}


def check_sizes(folder: str, files: Mapping[str, Checksum]) -> None:
    """Compare the sizes of a folder's files with the recorded ones; costs one listing.

    Raises:
        Damaged: A file is missing or has another size.
    """
    there = paths.sizes(folder)
    for name, expected in files.items():
        _compare(paths.join(folder, name), there.get(name), expected)


def check_content(folder: str, files: Mapping[str, Checksum]) -> None:
    """Read a folder's files in full and compare their sha256 with the recorded ones.

    Raises:
        Damaged: A file is missing, torn or has other bytes.
    """
    for name, expected in files.items():
        file = paths.join(folder, name)
        try:
            with open(paths.local(file), "rb") as opened:
                _compare(file, os.fstat(opened.fileno()).st_size, expected)
                got = hashlib.file_digest(opened, "sha256").hexdigest()
        except FileNotFoundError:
            _compare(file, None, expected)
        if got != expected.sha256:
            raise Damaged(f"{file}: got bytes of sha256 {got[:16]}, expected {expected.sha256[:16]}")


def _compare(file: str, num_bytes: int | None, expected: Checksum) -> None:
    if num_bytes != expected.num_bytes:
        got = "no such file" if num_bytes is None else f"{num_bytes} bytes"
        raise Damaged(f"{file}: got {got}, expected {expected.num_bytes} bytes")

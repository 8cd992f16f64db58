"""A cache whose files need each other goes as a whole. For copies of remote files, see test_paths.py."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from raychat import disk


@pytest.mark.parametrize("size, hours_ago, stays", [(600, 1, False), (400, 1, True), (600, 0, True)])
def test_a_cache_is_emptied_if_it_is_large_and_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, hours_ago: float, stays: bool
) -> None:
    """The disk has 10,000 bytes, so 1,000 for the cache."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10_000, free=5_000))
    folder = tmp_path / "compiled"
    (folder / "kernel").mkdir(parents=True)
    for name, age in (("kernel/code", hours_ago), ("index", 2)):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (time.time() - 3600 * age,) * 2)
    disk.empty_if_large(str(folder))
    assert (folder / "kernel" / "code").exists() == (folder / "index").exists() == stays


def test_a_cache_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    disk.empty_if_large(str(tmp_path / "home" / "compiled"))
    assert not list((tmp_path / "home" / "compiled").iterdir())

"""One storage helper: local folders and object stores (fsspec's memory, S3) behave the same."""

import fcntl
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from raychat import paths


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: object) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/raychat"
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_written_files_are_read_back(root: str) -> None:
    paths.write_json(paths.join(root, "a", "b.json"), {"x": [1, 2]})
    assert paths.read_json(paths.join(root, "a", "b.json")) == {"x": [1, 2]}
    assert paths.names(paths.join(root, "a")) == ["b.json"]
    assert paths.exists(paths.join(root, "a", "b.json"))
    assert paths.is_folder(paths.join(root, "a"))


def test_absent_folder_has_no_names(root: str) -> None:
    assert paths.names(paths.join(root, "nothing")) == []
    paths.remove(paths.join(root, "nothing"))


def test_new_folder_appears_whole(root: str) -> None:
    folder = paths.join(root, "made")
    with paths.new_folder(folder) as temporary:
        for name in ("meta.json", "z.txt"):
            paths.write_text(os.path.join(temporary, name), name)
        assert not paths.exists(folder)
    assert paths.names(folder) == ["meta.json", "z.txt"]


def test_failed_new_folder_leaves_nothing_and_keeps_the_old(root: str) -> None:
    folder = paths.join(root, "made")
    paths.write_text(paths.join(folder, "old.txt"), "old")

    def fill() -> None:
        with paths.new_folder(folder) as temporary:
            paths.write_text(os.path.join(temporary, "new.txt"), "new")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fill()
    assert paths.names(folder) == ["old.txt"]
    assert paths.names(root) == ["made"]


def test_local_copy_has_the_same_content(root: str) -> None:
    path = paths.join(root, "shard.bin")
    paths.write_bytes(path, b"\x00\x01")
    with open(paths.local(path), "rb") as f:
        assert f.read() == b"\x00\x01"


def test_file_is_created_once(root: str) -> None:
    path = paths.join(root, "new", "a.txt")
    assert [paths.create(path, text) for text in (b"one", b"two")] == [True, False]
    assert paths.read_bytes(path) == b"one"


def put(url: str, num_bytes: int) -> Path:
    """Write a remote file and return its copy on this machine."""
    paths.write_bytes(url, bytes(num_bytes))
    return Path(paths.local(url))


def used(copy: Path, hours_ago: float) -> None:
    os.utime(copy, (time.time() - 3600 * hours_ago,) * 2)


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of 10,000 bytes, so 1,000 for copies."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10_000, free=5_000))


def test_copies_lie_under_home(raychat_home: Path) -> None:
    assert put(f"memory://{uuid.uuid4().hex}/a.bin", 3).parent == raychat_home / "copies"


def test_least_recently_used_copies_make_room(small_cache: None) -> None:
    bucket = f"memory://{uuid.uuid4().hex}"
    copies = [put(f"{bucket}/{name}", 400) for name in "ab"]
    for copy, hours in zip(copies, (3, 2), strict=True):
        used(copy, hours)
    assert paths.local(f"{bucket}/a") == str(copies[0])  # used now
    third = put(f"{bucket}/c", 400)
    assert [copy.exists() for copy in (*copies, third)] == [True, False, True]


def test_copies_in_use_stay_and_a_file_above_the_limit_is_copied(small_cache: None) -> None:
    bucket = f"memory://{uuid.uuid4().hex}"
    copies = [put(f"{bucket}/{name}", size) for name, size in (("a", 400), ("b", 3000))]
    assert all(copy.exists() for copy in copies)
    used(copies[1], 1)
    assert put(f"{bucket}/c", 100).exists()
    assert [copy.exists() for copy in copies] == [True, False]


def test_copies_make_room_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"memory://{uuid.uuid4().hex}"
    old = put(f"{bucket}/a", 400)
    used(old, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10_000, free=100))
    put(f"{bucket}/b", 200)
    assert not old.exists()


def test_copy_that_another_process_is_removing_is_made_again() -> None:
    url = f"memory://{uuid.uuid4().hex}/a"
    copy = put(url, 400)
    with ThreadPoolExecutor(1) as threads:
        with open(f"{paths.cache()}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            asked = threads.submit(paths.local, url)
            wait([asked], timeout=0.2)
            copy.unlink()
        assert asked.result() == str(copy)
    assert copy.read_bytes() == bytes(400)


def test_file_of_a_web_server_has_another_version_when_it_is_rewritten(tmp_path: Path) -> None:
    """Its size is the same, and fsspec itself takes the web for unchanging."""
    (tmp_path / "x.txt").write_text("one")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.txt"
        versions = []
        for text, time_s in (("one", 10_000), ("one", 10_000), ("two", 20_000)):
            (tmp_path / "x.txt").write_text(text)
            os.utime(tmp_path / "x.txt", (time_s, time_s))
            versions.append(paths.version(url))
            assert Path(paths.local(url)).read_text() == text
        server.shutdown()
    assert versions[0] == versions[1] != versions[2]


def test_home_is_moved_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCHAT_HOME", "/somewhere")
    assert paths.home() == "/somewhere"


def test_copies_lie_on_this_machine_where_home_is_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCHAT_HOME", "s3://bucket/raychat")
    assert paths.cache() == os.path.expanduser("~/.cache/raychat/copies")

"""One storage helper: local folders and an object store (fsspec's memory) behave the same."""

import os
import threading
import uuid
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raychat import paths


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: object) -> str:
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

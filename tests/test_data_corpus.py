import doctest
import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from raychat import paths
from raychat.data import corpus, reading
from raychat.data.hub import TEXTS, fetch
from raychat.data.reading import DOCUMENT_CHARS, FileRange, text_documents

DOCUMENTS = [f"document {i}: " + "word " * (i % 7) + "ümläut 漢字" for i in range(50)]


def parquet(path: str, texts: list[str], row_group_size: int = 10) -> str:
    with paths.open_file(path, "wb") as f:
        pq.write_table(pa.table({"text": texts, "other": list(range(len(texts)))}), f, row_group_size=row_group_size)
    return path


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in texts).encode()


def written(path: str, data: bytes) -> str:
    paths.write_bytes(path, data)
    return path


def documents(blocks: list[reading.DocumentBlock]) -> list[str]:
    return [text for block in blocks for text in reading.texts(block).to_pylist()]


def test_a_folder_gives_its_shards_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "c.parquet", "notes.md", "d.jsonl.zst"):
        written(str(tmp_path / name), b"")
    names = ["a.txt", "b.jsonl", "c.parquet", "d.jsonl.zst"]
    assert corpus.shards([str(tmp_path)], "unused") == [str(tmp_path / name) for name in names]
    assert corpus.shards([f"{tmp_path}/*.txt", f"{tmp_path}/c.parquet"], "unused") == [
        str(tmp_path / name) for name in ("a.txt", "c.parquet")
    ]


def test_remote_shards_keep_their_scheme(tmp_path: Path) -> None:
    root = f"memory://{tmp_path.name}"
    for i in range(3):
        written(f"{root}/part-{i}.txt", b"text")
    expected = [f"{root}/part-{i}.txt" for i in range(3)]
    assert corpus.shards([root], "unused") == expected
    assert [paths.name(s) for s in corpus.shards([f"{root}/*.txt"], "unused")] == [paths.name(s) for s in expected]
    assert documents(reading.blocks(corpus.shards([f"{root}/*.txt"], "unused"))) == ["text"] * 3


def test_number_of_training_shards_keeps_the_validation_shard(tmp_path: Path) -> None:
    for i in range(5):
        written(str(tmp_path / f"{i}.txt"), b"")
    found = corpus.shards([str(tmp_path)], "unused", num_shards=2)
    assert [paths.name(s) for s in found] == ["0.txt", "1.txt", "4.txt"]
    assert corpus.shards([str(tmp_path)], "unused", num_shards=9) == corpus.shards([str(tmp_path)], "unused")
    with pytest.raises(ValueError, match="num_shards"):
        corpus.shards([str(tmp_path)], "unused", num_shards=0)


def test_hub_corpora_are_listed_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shards = corpus.shards(["climbmix"], "/storage")
    assert len(shards) == 6543
    assert shards[0] == "/storage/data/climbmix/shard_00000.parquet"
    assert corpus.split(shards)[1] == ["/storage/data/climbmix/shard_06542.parquet"]
    assert len(corpus.shards(["fineweb-edu"], "s3://bucket")) == 1823
    blocks = reading.blocks(shards[:3])
    assert blocks == [reading.DocumentBlock((FileRange(shard),)) for shard in shards[:3]]  # a shard is a block, unseen
    assert corpus.shards_needed(["climbmix"], 1_000_000_000) == 32
    assert corpus.shards_needed(["climbmix"], 10**15) == 6542
    assert corpus.shards_needed(["tinyworld"], 1_000_000_000) is None


def test_tinyworld_is_written_once(tmp_path: Path) -> None:
    shards = corpus.shards(["tinyworld"], str(tmp_path))
    assert len(shards) > 2
    assert all(shard.startswith(f"{tmp_path}/data/tinyworld/pretrain/") for shard in shards)
    versions = [corpus.version(shard) for shard in shards]
    assert [corpus.version(shard) for shard in corpus.shards(["tinyworld"], str(tmp_path))] == versions
    assert sum(map(len, reading.texts(reading.blocks(shards)[0]).to_pylist())) > 100_000


@pytest.mark.parametrize(
    "name, message",
    [("absent", "does not exist"), ("*.txt", "matches no file"), ("", "holds no file"), ("notes.md", "unknown kind")],
)
def test_names_without_shards_are_refused(tmp_path: Path, name: str, message: str) -> None:
    written(str(tmp_path / "notes.md"), b"")
    with pytest.raises(ValueError, match=message):
        corpus.shards([str(tmp_path / name)], "unused")


def test_one_shard_for_training_and_validation_is_an_error(tmp_path: Path) -> None:
    shard = written(str(tmp_path / "a.txt"), b"text")
    with pytest.raises(ValueError, match="at least 2 shards"):
        corpus.split(corpus.shards([shard], "unused"))


def test_a_file_named_twice_is_an_error_however_it_is_spelled(tmp_path: Path) -> None:
    shard = written(str(tmp_path / "a.txt"), b"text")
    written(str(tmp_path / "b.txt"), b"other")
    (tmp_path / "link.txt").symlink_to(shard)
    (tmp_path / "hard.txt").hardlink_to(shard)
    for other in (shard, f"{tmp_path}/../{tmp_path.name}/a.txt", f"{tmp_path}/link.txt", f"{tmp_path}/hard.txt"):
        with pytest.raises(ValueError, match="twice"):
            corpus.shards([shard, f"{tmp_path}/b.txt", other], "unused")
        with pytest.raises(ValueError, match="twice"):
            corpus.split([shard, f"{tmp_path}/b.txt", other])
    with pytest.raises(ValueError, match="twice"):
        corpus.split(["memory://x/a.txt", "memory:///x/a.txt"])


def test_split_takes_the_last_shards() -> None:
    assert corpus.split(["a", "b", "c"]) == (["a", "b"], ["c"])
    assert corpus.split(["a", "b", "c"], num_val=2) == (["a"], ["b", "c"])


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
@pytest.mark.parametrize("remote", [False, True])
def test_every_document_is_read_once_in_order(tmp_path: Path, name: str, remote: bool) -> None:
    path = f"memory://{tmp_path.name}/{name}" if remote else str(tmp_path / name)
    if name.endswith(".parquet"):
        parquet(path, DOCUMENTS)
    elif name.endswith(".gz"):
        written(path, gzip.compress(json_lines(DOCUMENTS)))
    elif name.endswith(".zst"):  # two frames, as `cat a.zst b.zst` makes
        halves = (json_lines(DOCUMENTS[:20]), json_lines(DOCUMENTS[20:]))
        written(path, b"".join(zstandard.ZstdCompressor().compress(half) for half in halves))
    else:
        written(path, json_lines(DOCUMENTS))
    for min_bytes in (1, 300, 1_000_000):
        assert documents(reading.blocks([path], min_bytes=min_bytes)) == DOCUMENTS
    if name in ("x.parquet", "x.jsonl"):
        assert len(reading.blocks([path], min_bytes=300)) > 3


def test_small_files_share_a_block(tmp_path: Path) -> None:
    files = [written(str(tmp_path / f"{i:02d}.txt"), DOCUMENTS[i].encode()) for i in range(20)]
    blocks = reading.blocks(files, min_bytes=200)
    assert 1 < len(blocks) < 15
    assert documents(blocks) == DOCUMENTS[:20]


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    assert documents(reading.blocks([parquet(str(tmp_path / "x.parquet"), ["a", "", "b"])])) == ["a", "b"]
    assert documents(reading.blocks([written(str(tmp_path / "y.jsonl"), json_lines(["", "b"]) + b"\n\n")])) == ["b"]
    assert documents(reading.blocks([written(str(tmp_path / "z.txt"), b"\n \n\n")])) == []
    assert documents(reading.blocks([written(str(tmp_path / "e.jsonl"), b"")])) == []


words = st.text("ab \n\r\té", max_size=30)


@given(st.lists(words, max_size=40).map("\n".join))
def test_text_documents_lose_nothing_but_space(text: str) -> None:
    joined = "".join("".join(text_documents(text)).split())
    assert joined == "".join(text.split())


def test_text_documents_are_whole_paragraphs_of_about_2000_characters() -> None:
    paragraphs = [f"Paragraph {i}.\n" + "A line of it.\n" * (i % 40) for i in range(100)]
    found = list(text_documents("\n".join(paragraphs)))
    assert all(len(document) <= DOCUMENT_CHARS for document in found)
    assert sum(len(d) for d in found[:-1]) / len(found[:-1]) > DOCUMENT_CHARS * 0.7
    assert [p.strip() for d in found for p in d.split("\n\n")] == [p.strip() for p in paragraphs]


def test_text_without_blank_lines_is_cut_at_line_ends() -> None:
    lines = [f"{i} " + "x" * 70 for i in range(200)]
    found = list(text_documents("\n".join(lines)))
    assert [line for document in found for line in document.splitlines()] == lines
    assert max(map(len, found)) <= DOCUMENT_CHARS


@pytest.mark.parametrize("blank", ["\n", " \n"])
def test_text_is_cut_into_blocks_between_paragraphs(tmp_path: Path, blank: str) -> None:
    paragraphs = [f"Paragraph {i}.\n" + f"Line of {i}.\n" * 30 for i in range(300)]
    path = written(str(tmp_path / "x.txt"), blank.join(paragraphs).encode())
    blocks = reading.blocks([path], min_bytes=10_000)
    assert len(blocks) > 5
    found = [p.strip() for text in documents(blocks) for p in re.split(r"\n\s*\n", text)]
    assert found == [p.strip() for p in paragraphs]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(reading) == (0, 2)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "x.parquet")
    for name, data, message in [
        ("x.parquet", None, "columns.*content.*expected one named 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}\n', "a.jsonl, line 2: expected .*KeyError"),
        ("b.jsonl", b"[1]\n", "b.jsonl, line 1: expected .*TypeError"),
        ("c.jsonl", b'{"text": 1}\n', "c.jsonl, line 1: expected 'text' to be a string"),
        ("d.txt", "ü".encode("latin-1"), "d.txt is not UTF-8"),
    ]:
        path = str(tmp_path / name)
        if data is not None:
            written(path, data)
        with pytest.raises(ValueError, match=message):
            documents(reading.blocks([path]))


def test_version_changes_with_the_file(tmp_path: Path) -> None:
    for path in (str(tmp_path / "x.txt"), f"memory://{tmp_path.name}/x.txt"):
        written(path, b"one")
        before = corpus.version(path)
        assert corpus.version(path) == before
        written(path, b"two")
        assert corpus.version(path) != before


class Hub(ThreadingHTTPServer):
    """Serves one file as the hub does, and fails as told: each GET takes the next of `faults`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.content = content
        self.faults: list[str] = []
        self.requests: list[str] = []


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.server.content
        self.server.requests.append(f"{self.command} {self.path}")
        if not self.path.endswith(
            (
                "/datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_00007.parquet",
                "/datasets/Skylion007/openwebtext/resolve/main/plain_text/train-00007-of-00080.parquet",
                "/input.txt",
            )
        ):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        fault = self.server.faults.pop(0) if body and self.server.faults else ""
        if fault == "unavailable":
            self.send_error(500)
            return
        if fault == "short":
            content = content[: len(content) // 2]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Linked-Size", str(len(self.server.content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 3] if fault == "cut" else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with open(parquet(str(tmp_path / "source.parquet"), DOCUMENTS), "rb") as f:
        server = Hub(f.read())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("remote", [False, True])
def test_hub_shard_is_downloaded_when_it_is_read_and_once(hub: Hub, tmp_path: Path, remote: bool) -> None:
    storage = f"memory://{tmp_path.name}" if remote else str(tmp_path / "storage")
    shard = corpus.shards(["climbmix"], storage)[7]
    assert documents(reading.blocks([shard])) == DOCUMENTS
    assert paths.read_bytes(shard) == hub.content
    seen = len(hub.requests)
    assert documents(reading.blocks([shard])) == DOCUMENTS
    assert len(hub.requests) == seen
    assert paths.names(f"{storage}/data/climbmix") == ["shard_00007.parquet"]
    if not remote:
        assert [p.name for p in (tmp_path / "storage/data/climbmix").iterdir()] == ["shard_00007.parquet"]


def test_openwebtext_has_other_names_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    shard = corpus.shards(["openwebtext"], str(tmp_path / "storage"))[7]
    assert documents(reading.blocks([shard])) == DOCUMENTS
    assert [p.name for p in (tmp_path / "storage/data/openwebtext").iterdir()] == ["shard_00007.parquet"]


def test_a_text_is_downloaded_once(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXTS, "tinyshakespeare", f"http://127.0.0.1:{hub.server_port}/input.txt")
    found = [corpus.shards(["tinyshakespeare"], str(tmp_path)) for _ in range(2)]
    assert found == [[f"{tmp_path}/data/tinyshakespeare/input.txt"]] * 2
    assert hub.requests == ["GET /input.txt"]
    assert paths.read_bytes(found[0][0]) == hub.content


@pytest.mark.parametrize("fault", ["unavailable", "cut"])
def test_a_text_that_cannot_be_downloaded_says_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(TEXTS, "tinyshakespeare", f"http://127.0.0.1:{hub.server_port}/input.txt")
    hub.faults = [fault]
    with pytest.raises(ConnectionError, match=r"put the file at .*/data/tinyshakespeare/input\.txt"):
        corpus.shards(["tinyshakespeare"], str(tmp_path))
    assert not paths.exists(f"{tmp_path}/data/tinyshakespeare/input.txt")


@pytest.mark.parametrize("faults", [["unavailable"], ["short"], ["cut", "cut"], ["short", "unavailable", "cut"]])
def test_failed_and_truncated_downloads_are_tried_again(hub: Hub, tmp_path: Path, faults: list[str]) -> None:
    hub.faults = faults
    shard = corpus.shards(["climbmix"], str(tmp_path / "storage"))[7]
    logged: list[str] = []
    assert fetch(shard, backoff_s=0.01, log=logged.append) == shard
    assert paths.read_bytes(shard) == hub.content
    assert not hub.faults


def test_download_that_keeps_failing_leaves_no_file_and_says_why(hub: Hub, tmp_path: Path) -> None:
    hub.faults = ["short"] * 100
    shard = corpus.shards(["climbmix"], str(tmp_path / "storage"))[7]
    logged: list[str] = []
    with pytest.raises(ConnectionError, match=r"shard_00007\.parquet .* in 3 attempts"):
        fetch(shard, attempts=3, backoff_s=0.01, log=logged.append)
    assert not paths.exists(shard)
    assert len(logged) == 2
    assert "attempt 1 of 3" in logged[0]


def test_shard_that_the_hub_does_not_have_is_not_tried_again(hub: Hub, tmp_path: Path) -> None:
    shard = corpus.shards(["climbmix"], str(tmp_path / "storage"))[8]
    with pytest.raises(FileNotFoundError, match=r"no shard_00008\.parquet"):
        fetch(shard)
    assert len(hub.requests) <= 2

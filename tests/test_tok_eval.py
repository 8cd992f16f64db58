"""evals/compression.py and jobs/tok_eval.py."""

import json
import time
from pathlib import Path

import pytest
import tiktoken

from jobs import tok_eval
from raychat.cluster import Cluster
from raychat.evals import compression
from raychat.tokenizer import Tokenizer

BYTES = [bytes([byte]) for byte in range(256)]


def test_compression_of_known_counts() -> None:
    (row,) = compression.measure({"kind": "äb", "empty": ""}, {"bytes": lambda t: len(t.encode()), "chars": len})
    assert row.bytes_per_token("bytes") == 1
    assert row.bytes_per_token("chars") == 1.5
    assert row.saving("chars", "bytes") == pytest.approx(1 / 3)
    assert "-33.3%" in compression.table([row], "chars")


def test_peer_that_does_not_answer_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(OSError, match="no answer"):
        compression.peer("gpt2", timeout_s=0.1)
    assert time.monotonic() - started < 10


def test_peers_without_network_are_said_to_be_missing(
    raychat_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get_encoding(name: str) -> tiktoken.Encoding:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    args = tok_eval.Args(run="a", data=(), cluster=Cluster(workers=0))
    folder = args.cluster.run_folder("a", "tokenizer")
    Tokenizer([*BYTES, b"th", b"the"]).save(folder)
    result = tok_eval.run(args)
    assert set(result["missing"]) == {"GPT-2", "GPT-4"}
    assert "could not fetch it" in capsys.readouterr().out
    assert {"news", "code", "math", "scripts"} <= set(result["texts"])
    assert json.loads((Path(folder) / "eval.json").read_text()) == result
    assert (Path(folder) / "eval.svg").read_text().rstrip().endswith("</svg>")


def test_peers_and_files_are_measured(raychat_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_byte = tiktoken.Encoding(
        "b", pat_str=".", mergeable_ranks={b: i for i, b in enumerate(BYTES)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: by_byte)
    (tmp_path / "notes.md").write_text("the the")
    args = tok_eval.Args(run="a", data=(), files=(str(tmp_path / "notes.md"),), cluster=Cluster(workers=0))
    Tokenizer([*BYTES, b"th", b"the"]).save(args.cluster.run_folder("a", "tokenizer"))
    assert tok_eval.run(args)["texts"]["notes.md"]["tokens"] == {"a": 3, "GPT-2": 7, "GPT-4": 7}


def test_run_without_tokenizer_is_told_to_train_one(raychat_home: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tok_train"):
        tok_eval.run(tok_eval.Args(run="none", data=(), cluster=Cluster(workers=0)))

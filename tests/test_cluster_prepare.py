import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from raychat import paths
from raychat.cluster import Cluster
from raychat.cluster.prepare import Preparation, prepare
from raychat.data import corpus, reading
from raychat.data.pack import Packing, documents
from raychat.data.packing import Packed
from raychat.data.shards import FAILED_FILE, PLAN_FILE, Plan, TokenRows
from raychat.tokenizer import Tokenizer

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test

HERE = Cluster(workers=0)  # in this process
BYTES = Tokenizer([bytes([i]) for i in range(256)])  # a token is a byte: what a row should hold is plain to see
T = 63


def quiet(_: str) -> None:
    pass


def shards_of(folder: Path, num_shards: int = 3, num_documents: int = 400) -> list[str]:
    """Write shards of JSON lines with documents that are all different, and not all short."""
    for shard in range(num_shards):
        lines = [f"{shard}/{i} " + "abc " * (i * 7 % 40) for i in range(num_documents)]
        paths.write_text(str(folder / f"{shard}.jsonl"), "".join(json.dumps({"text": text}) + "\n" for text in lines))
    return corpus.shards([str(folder)], "unused")


def content(folder: str) -> dict[str, str]:
    """Every file of a local folder and a digest of its bytes."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}


def small_blocks(work: Packing, shards: list[str]) -> Packing:
    """The same work in more and smaller blocks than `documents` would make."""
    blocks = reading.blocks(shards, min_bytes=4000)
    return work._replace(blocks=blocks, plan=Plan(len(blocks), T, BYTES.vocab_size, False, "test"))


def documents_work(tmp_path: Path, name: str = "storage") -> Packing:
    shards = shards_of(tmp_path / "data")
    return small_blocks(documents(shards, BYTES, T, str(tmp_path / name)), shards)


def all_rows(folder: str) -> np.ndarray:
    rows = TokenRows(folder, wait_s=5)
    return rows.rows(np.arange(rows.num_rows()))[0]


def numbers(folder: Path, pack: Callable[[int], Packed], num_blocks: int = 4) -> Packing:
    """Blocks that are numbers, packed by functions that wait, fail or die as files command."""
    plan = Plan(num_blocks, T, BYTES.vocab_size, masked=False, inputs="numbers")
    return Packing(str(folder), plan, list(range(num_blocks)), pack)


def two_rows(block: int) -> Packed:
    return Packed(np.full((2, T + 1), block, dtype=np.uint16), documents=5, used=120, lost=1)


def waits_for(folder: str, block: int) -> Packed:
    """Blocks after the first wait until the file `go` is there."""
    while block and not os.path.exists(f"{folder}/go"):
        time.sleep(0.01)
    return two_rows(block)


def fails_without(folder: str, block: int) -> Packed:
    if block == 2 and not os.path.exists(f"{folder}/go"):
        raise ValueError(f"block {block} is unreadable")
    return two_rows(block)


def dies_once(folder: str, block: int) -> Packed:
    """The process that packs block 2 is killed, the first time."""
    if block == 2 and not os.path.exists(f"{folder}/died"):
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return two_rows(block)


@pytest.mark.parametrize(
    "text, got", [("short", "1 documents of 6 tokens fill no row of 64 tokens"), ("", "0 documents of 0 tokens")]
)
def test_text_without_a_row_is_an_error_that_says_what_there_was(tmp_path: Path, text: str, got: str) -> None:
    paths.write_text(str(tmp_path / "x.txt"), text)
    packing = documents([str(tmp_path / "x.txt")], BYTES, T, str(tmp_path))
    for _ in range(2):  # made, and found made
        with pytest.raises(ValueError, match=rf"x\.txt: {got}.*; give more text, or a shorter --sequence-len"):
            prepare(packing, HERE, log=quiet)


def test_shard_without_a_row_group_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: 0 documents of 0 tokens"):
        prepare(documents([str(tmp_path / "x.parquet")], BYTES, T, str(tmp_path)), HERE, log=quiet)


def test_remote_storage(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "data")
    local = prepare(documents(shards, BYTES, T, str(tmp_path)), HERE, log=quiet)
    remote = prepare(documents(shards, BYTES, T, f"memory://{tmp_path.name}"), HERE, log=quiet)
    assert (all_rows(local) == all_rows(remote)).all()


def test_rerun_makes_only_what_is_missing(tmp_path: Path) -> None:
    work = documents_work(tmp_path)
    folder = prepare(work, HERE, log=quiet)
    before = content(folder)
    removed = [name for name in before if name.startswith(("000001-", "000003-"))]
    assert len(before) > 6
    assert len(removed) == 2
    for name in removed:
        os.remove(f"{folder}/{name}")
    made: list[Any] = []

    def reading(block: Any) -> Any:
        made.append(block)
        return work.read(block)

    prepare(work._replace(read=reading), HERE, log=quiet)
    assert made == [work.blocks[1], work.blocks[3]]
    assert content(folder) == before
    prepare(work._replace(read=reading), HERE, log=quiet)
    assert len(made) == 2


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    prepare(numbers(tmp_path, two_rows), HERE, log=quiet)
    with pytest.raises(ValueError, match="another plan"):
        prepare(numbers(tmp_path, two_rows, num_blocks=5), HERE, log=quiet)


def test_first_rows_are_read_while_later_ones_are_being_made(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    preparation = Preparation(numbers(folder, partial(waits_for, str(tmp_path))), HERE, log=quiet)
    rows = TokenRows(str(folder), wait_s=10)
    assert rows.rows([0, 1])[0][:, 0].tolist() == [0, 0]
    assert rows.available() == 2
    (tmp_path / "go").touch()
    assert rows.rows([7])[0][0, 0] == 3
    assert preparation.result() == str(folder)


def test_preparation_stops_when_nobody_needs_more(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with Preparation(numbers(folder, partial(waits_for, str(tmp_path))), HERE, log=quiet):
        assert TokenRows(str(folder), wait_s=10).rows([0])[0][0, 0] == 0
        timer = subprocess.Popen(
            [sys.executable, "-c", f"import time; time.sleep(0.5); open({str(tmp_path / 'go')!r}, 'w')"]
        )
    timer.wait()
    assert [name for name in paths.names(str(folder)) if name != PLAN_FILE] == [
        "000000-00000002-5-120-1.npy",
        "000001-00000002-5-120-1.npy",
    ]
    prepare(numbers(folder, two_rows), HERE, log=quiet)
    assert TokenRows(str(folder)).num_rows() == 8


def check_failure(work: Packing, cluster: Cluster, go: Path) -> None:
    """A failing preparation says why to its caller and to readers; the next one goes on from there."""
    with pytest.raises(RuntimeError, match="ValueError: block 2 is unreadable") as failure:
        prepare(work, cluster, log=quiet)
    assert failure.value.__cause__ is not None
    assert "fails_without" in paths.read_text(paths.join(work.folder, FAILED_FILE))  # the traceback
    with pytest.raises(RuntimeError, match="block 2 is unreadable"):
        TokenRows(work.folder).num_rows()
    go.touch()
    prepare(work, cluster, log=quiet)
    assert TokenRows(work.folder).num_rows() == 8
    assert FAILED_FILE not in paths.names(work.folder)


def test_failure_is_told_to_caller_and_readers(tmp_path: Path) -> None:
    check_failure(numbers(tmp_path / "tokens", partial(fails_without, str(tmp_path))), HERE, tmp_path / "go")


def test_progress_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    prepare(numbers(tmp_path / "tokens", two_rows), HERE, log=said.append)
    assert said[0] == "tokens: making 4 of 4 blocks"
    assert said[-1].startswith("tokens: block 4/4 rows 8 tokens 480 lost 0.83% tok/s ")
    prepare(numbers(tmp_path / "tokens", two_rows), HERE, log=said.append)
    assert len(said) == 2  # nothing to do, nothing to say


_KILLED = """
import sys, time
from raychat.cluster import Cluster
from raychat.cluster.prepare import prepare
from raychat.data.pack import documents
from raychat.tokenizer import Tokenizer
sys.path.insert(0, {tests!r})
import test_cluster_prepare as test_prepare
work = test_prepare.small_blocks(documents({shards!r}, test_prepare.BYTES, test_prepare.T, {storage!r}), {shards!r})
def slowly(block):
    time.sleep(0.1)
    return work.pack(block)
prepare(work._replace(pack=slowly), Cluster(workers=0))
"""


def test_killed_in_the_middle_and_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = documents_work(tmp_path, "whole")
    prepare(whole, HERE, log=quiet)
    shards = corpus.shards([str(tmp_path / "data")], "unused")
    killed = small_blocks(documents(shards, BYTES, T, str(tmp_path / "killed")), shards)
    script = _KILLED.format(tests=str(Path(__file__).parent), shards=shards, storage=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(paths.names(killed.folder)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 4 <= len(paths.names(killed.folder)) < len(content(whole.folder))
    prepare(killed, HERE, log=quiet)
    there = content(killed.folder)
    assert {name: there[name] for name in paths.names(killed.folder)} == content(whole.folder)


@pytest.mark.ray
def test_ray_tasks_make_the_same_bytes(ray_cluster: None, tmp_path: Path) -> None:
    here, there = documents_work(tmp_path, "here"), documents_work(tmp_path, "there")
    prepare(here, HERE, log=quiet)
    said: list[str] = []
    prepare(there, Cluster(workers=2), log=said.append)
    assert content(there.folder) == content(here.folder)
    assert f"block {len(there.blocks)}/{len(there.blocks)} " in said[-1]


@pytest.mark.ray
def test_failure_of_a_task_is_told_to_caller_and_readers(ray_cluster: None, tmp_path: Path) -> None:
    work = numbers(tmp_path / "tokens", partial(fails_without, str(tmp_path)))
    check_failure(work, Cluster(workers=1), tmp_path / "go")


@pytest.mark.ray
def test_killed_task_is_done_again(ray_cluster: None, tmp_path: Path) -> None:
    folder = prepare(numbers(tmp_path / "tokens", partial(dies_once, str(tmp_path))), Cluster(workers=1), log=quiet)
    assert (tmp_path / "died").exists()
    assert all_rows(folder)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.ray
def test_a_node_that_does_not_see_the_folder_is_named(ray_cluster: None) -> None:
    """The memory of the driver's process stands for a disk that the tasks do not see."""
    work = numbers(Path("unused"), two_rows)._replace(folder=f"memory://{uuid.uuid4().hex}/tokens")
    seen = r"the node [\d.]+ does not see memory://.*/plan.json; set --cluster.storage-path to a folder or bucket"
    with pytest.raises(RuntimeError, match=seen):
        prepare(work, Cluster(workers=1), log=quiet)

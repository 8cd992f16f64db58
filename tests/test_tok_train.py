"""jobs/tok_train.py: the tokenizer depends on the documents only, and a run keeps the one it has."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raychat_bpe

from jobs import tok_train
from raychat.cluster import Cluster, count
from raychat.data import reading
from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

TEXTS = [f"Document {i}: the cat's {word} sat on {i * 7} mats.\n" * 3 for i in range(60) for word in ("naïve", "猫")]

WriteShards = Callable[[str, int, int], str]


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Write TEXTS as parquet shards of `shard` documents in row groups of `row_group`, and a shard for validation."""

    def write(name: str, shard: int, row_group: int) -> str:
        folder = tmp_path / name
        folder.mkdir()
        shards = [TEXTS[i : i + shard] for i in range(0, len(TEXTS), shard)] + [["held out: xylophone xylophone"]]
        for i, texts in enumerate(shards):
            pq.write_table(pa.table({"text": texts}), folder / f"shard_{i:05d}.parquet", row_group_size=row_group)
        return str(folder)

    return write


def trained(args: tok_train.Args) -> str:
    tok_train.run(args)
    return Path(args.cluster.run_folder(args.run, "tokenizer", "tokenizer.json")).read_text()


def arguments(data: str, run: str = "a", workers: int = 0, **other: int) -> tok_train.Args:
    return tok_train.Args(run=run, data=(data,), vocab_size=300, cluster=Cluster(workers=workers), **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_chars", [10**9, 5000])
def test_shards_and_blocks_do_not_matter(write_shards: WriteShards, max_chars: int) -> None:
    one = trained(arguments(write_shards("x", 60, 7), run="x", max_chars=max_chars))
    two = trained(arguments(write_shards("y", 25, 30), run="y", max_chars=max_chars))
    assert one == two


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_do_not_matter(write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "blocks", functools.partial(reading.blocks, min_bytes=2000))
    data = write_shards("x", 25, 7)
    runs = [trained(arguments(data, run=f"w{n}", workers=n, max_chars=9000)) for n in (0, 1, 2, 4)]
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_counts_are_added_up_in_a_tree(write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_shards("x", 25, 3)
    expected = trained(arguments(data, run="a"))
    monkeypatch.setattr(count, "FAN_IN", 2)
    monkeypatch.setattr(reading, "blocks", functools.partial(reading.blocks, min_bytes=1))
    assert trained(arguments(data, run="b")) == expected


def test_rare_words_are_cut_and_reported(write_shards: WriteShards) -> None:
    summary = tok_train.run(arguments(write_shards("x", 60, 7), min_count=100))
    words = Counter(word for text in TEXTS for word in raychat_bpe.count([text], SPLIT_PATTERN).items())
    counts: Counter[bytes] = Counter()
    for (word, n), times in words.items():
        counts[word] += n * times
    rare = [n for n in counts.values() if n < 100]
    assert (summary["cut_words"], summary["cut_occurrences"]) == (len(rare), sum(rare))
    assert summary["unique_words"] == len(counts) - len(rare)


def test_validation_shard_is_not_counted(write_shards: WriteShards) -> None:
    summary = tok_train.run(arguments(write_shards("x", 60, 7)))
    assert summary["documents"] == len(TEXTS)
    assert summary["characters"] == sum(map(len, TEXTS))


def test_max_chars_and_doc_cap_crop(write_shards: WriteShards) -> None:
    summary = tok_train.run(arguments(write_shards("x", 60, 7), max_chars=105, doc_cap=10))
    assert (summary["characters"], summary["documents"]) == (105, 11)


def test_done_already_is_returned_at_once(write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(write_shards("x", 60, 7))
    first = tok_train.run(args)
    monkeypatch.setattr(Tokenizer, "train", None)
    assert tok_train.run(replace(args, cluster=Cluster(workers=2))) == first


def test_other_settings_need_overwrite(write_shards: WriteShards) -> None:
    args = arguments(write_shards("x", 60, 7))
    tok_train.run(args)
    other = replace(args, vocab_size=290)
    with pytest.raises(ValueError, match="--overwrite"):
        tok_train.run(other)
    assert tok_train.run(replace(other, overwrite=True))["vocab_size"] == 290

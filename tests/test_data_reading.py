"""Files that are damaged or cut short are named, with the place and the remedy; none is read in part without a word."""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raychat import paths
from raychat.data import reading

TEXTS = [f"document {i}: {random.Random(i).random()}" for i in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
PLAIN = "\n\n".join(TEXTS).encode()


def read(path: str, min_bytes: int = 1 << 20) -> list[str]:
    return [text for block in reading.blocks([path], min_bytes=min_bytes) for text in reading.texts(block).to_pylist()]


def frames(data: bytes, kind: str) -> list[bytes]:
    """Compress the halves of `data`, each as a frame of its own."""
    compress = zstandard.ZstdCompressor().compress if kind == "zst" else gzip.compress
    return [compress(half) for half in (data[: len(data) // 2], data[len(data) // 2 :])]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), buffer, row_group_size=200, compression="zstd")
    return buffer.getvalue()


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("name, data", [("x.jsonl", LINES), ("x.txt", PLAIN)])
def test_compressed_file_that_is_cut_anywhere_is_named(
    tmp_path: Path, name: str, data: bytes, kind: str, remote: bool
) -> None:
    path = f"memory://{tmp_path.name}/{name}.{kind}" if remote else f"{tmp_path}/{name}.{kind}"
    first, second = frames(data, kind)
    paths.write_bytes(path, first + second)
    assert len("".join(read(path))) >= len("".join(TEXTS))
    for end in (0, 5, len(first) // 2, len(first) + 5, len(first + second) - 1):
        paths.write_bytes(path, (first + second)[:end])
        with pytest.raises(ValueError, match=rf"{name}\.{kind}, at its end, byte {end:,}, cannot be read .*again"):
            read(path)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_file_with_foreign_bytes_is_named_with_the_place(tmp_path: Path, kind: str) -> None:
    path = f"{tmp_path}/x.jsonl.{kind}"
    first, second = frames(LINES, kind)
    paths.write_bytes(path, first + b"\0" * 20 + second)
    with pytest.raises(ValueError, match=rf"x\.jsonl\.{kind}, at about byte {len(first):,}, cannot be read"):
        read(path)


def test_parquet_file_that_is_cut_is_named(tmp_path: Path) -> None:
    data, path = parquet(), f"{tmp_path}/x.parquet"
    for end in (0, len(data) // 2, len(data) - 1):
        paths.write_bytes(path, data[:end])
        with pytest.raises(ValueError, match=r"x\.parquet, footer, cannot be read \(Arrow.*downloaded again"):
            reading.blocks([path])


@pytest.mark.parametrize("checksum", [False, True])
def test_damaged_row_group_is_named(tmp_path: Path, checksum: bool) -> None:
    """Zeros where zstd's data was; or, in pages that are not compressed, other letters, which only checksums show."""
    path = f"{tmp_path}/x.parquet"
    compression = "none" if checksum else "zstd"
    table = pa.table({"text": TEXTS})
    pq.write_table(table, path, 200, compression=compression, use_dictionary=False, write_page_checksum=checksum)
    chunk = pq.ParquetFile(path).metadata.row_group(7).column(0)
    data = bytearray(Path(path).read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 8] = b"abcdefgh" if checksum else b"\0" * 8
    Path(path).write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.parquet, row group 7, cannot be read \((OSError|ArrowInvalid)"):
        read(path)


def test_damaged_hub_shard_says_that_it_may_be_removed(tmp_path: Path) -> None:
    path = f"{tmp_path}/data/climbmix/shard_00003.parquet"
    paths.write_bytes(path, parquet()[:-100])
    with pytest.raises(ValueError, match=r"shard_00003\.parquet, footer, .* removed; it is downloaded again"):
        read(path)


def test_json_line_that_is_cut_is_named_with_its_number(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.jsonl"
    paths.write_bytes(path, LINES[:-9])
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2000: expected .*JSONDecodeError.*mend the line"):
        read(path)
    with pytest.raises(ValueError, match=r"x\.jsonl, line \d+ after byte [\d,]+: expected") as error:
        read(path, min_bytes=10_000)
    line, since = [int(word.replace(",", "").rstrip(":")) for word in str(error.value).split()[2:6:3]]
    assert LINES[since:-9].splitlines()[line - 1] == LINES[:-9].splitlines()[-1]


@pytest.mark.parametrize("name, data", [("x.jsonl", LINES), ("x.txt", PLAIN)])
@pytest.mark.parametrize("min_bytes", [10_000, 1 << 20])
def test_plain_file_that_is_cut_after_its_blocks_were_planned_is_named(
    tmp_path: Path, name: str, data: bytes, min_bytes: int
) -> None:
    path = f"{tmp_path}/{name}"
    paths.write_bytes(path, data)
    last = reading.blocks([path], min_bytes=min_bytes)[-1]
    end = data.index(b"\n", len(data) // 2) + 1
    paths.write_bytes(path, data[:end])
    with pytest.raises(ValueError, match=rf"{name}, at its end, byte {end:,}, cannot be read .*{len(data):,} bytes"):
        reading.texts(last)


def test_byte_that_is_not_utf_8_is_named_with_its_place(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.txt"
    paths.write_bytes(path, PLAIN + "ü".encode()[:1])
    for min_bytes in (10_000, 1 << 20):
        with pytest.raises(ValueError, match=rf"x\.txt is not UTF-8 at byte {len(PLAIN):,} "):
            read(path, min_bytes)

"""A corpus cut into blocks of documents that can be read independently: parquet, JSON lines and plain text."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from raychat import paths
from raychat.data.hub import fetch, source
from raychat.tokenizer import without_surrogates

KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".txt.zst")
DOCUMENT_CHARS = 2_000  # about the length of the documents that plain text is cut into
MAX_BLOCK_BYTES = 8 << 20
MIN_BLOCKS = 64  # if there is enough text


class FileRange(NamedTuple):
    """A part of one file: row groups [start, stop) of parquet; lines that begin in bytes [start, stop) of text."""

    path: str
    start: int = 0
    stop: int | None = None  # None = to the end


class DocumentBlock(NamedTuple):
    """Documents that are read, counted or packed together: parts of one or more files, in the order of the corpus."""

    parts: tuple[FileRange, ...]


def blocks(shards: Sequence[str], *, min_bytes: int = 1 << 18) -> list[DocumentBlock]:
    """Cut shards into blocks of about `min_bytes` of text or more (the last may have half of that).

    Blocks grow with the corpus up to 8 MB. Row groups of parquet files and compressed text files are not cut. A shard
    of the hub is one block, downloaded or not. Reads only file sizes and parquet footers.
    """
    with ThreadPoolExecutor(16) as pool:
        uncut = [sized for found in pool.map(_uncut_parts, shards) for sized in found]
    total = sum(num_bytes for part, num_bytes in uncut if not source(part.path))
    target = block_bytes(total, min_bytes)
    parts = (part for sized in uncut for part in _cut(*sized, target))
    return [DocumentBlock(tuple(group)) for group in _grouped(parts, target)]


def block_bytes(total: int, min_bytes: int) -> int:
    """Return the size of a block in a corpus of `total` bytes: 1/64 of it, at most 8 MB, at least `min_bytes`."""
    return max(min_bytes, min(MAX_BLOCK_BYTES, total // MIN_BLOCKS))


def texts(block: DocumentBlock) -> pa.ChunkedArray:
    """Read the documents of a block without the empty ones; download a missing hub shard first.

    Returns an Arrow column of strings, which the tokenizer reads in place; `.to_pylist()` gives Python strings. In
    parquet and JSON lines a document is the column or field `text`. Plain text is cut at blank lines, and paragraphs
    are joined up to about 2,000 characters; a longer paragraph is cut at line ends.

    Raises:
        ValueError: a file has no `text`, is not UTF-8, is damaged or cut short; names the file and the place.
    """
    columns = [_documents(part).cast(pa.large_string()) for part in block.parts]
    column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())
    return column.filter(pc.not_equal(column, ""))


def part_of_text(path: str, start: float, stop: float) -> list[str]:
    """Read the part of a text file between two shares of its characters, as one document."""
    text = _decoded(paths.read_bytes(path), path)
    return [text[int(start * len(text)) : int(stop * len(text))]]


def _uncut_parts(path: str) -> list[tuple[FileRange, int]]:
    """Return the parts of a file (row groups, or the whole file) and about how many bytes of text each has."""
    if hub := source(path):
        return [(FileRange(path), hub.shard_bytes)]
    if path.endswith(".parquet"):
        with paths.open_file(path) as f:
            metadata = _parquet(f, path).metadata
        groups = range(metadata.num_row_groups)
        return [(FileRange(path, i, i + 1), metadata.row_group(i).total_byte_size) for i in groups]
    size = paths.size(path)
    return [(FileRange(path, 0, size), size) if path.endswith((".jsonl", ".txt")) else (FileRange(path), 3 * size)]


def _cut(part: FileRange, num_bytes: int, target: int) -> list[tuple[FileRange, int]]:
    """Cut an uncompressed text file into equal parts of about `target` bytes; leave any other part whole."""
    count = max(1, round(num_bytes / target))
    if count == 1 or not part.path.endswith((".jsonl", ".txt")):
        return [(part, num_bytes)]
    ends = [num_bytes * i // count for i in range(count + 1)]
    return [(FileRange(part.path, a, b), b - a) for a, b in pairwise(ends)]


def _grouped(parts: Iterable[tuple[FileRange, int]], target: int) -> list[list[FileRange]]:
    """Join consecutive parts until a group has `target` bytes; join a last group of less than half to the previous."""
    groups: list[list[FileRange]] = []
    sizes: list[int] = []
    for part, num_bytes in parts:
        if not groups or sizes[-1] >= target or source(part.path):  # a hub shard is a block of its own
            groups.append([])
            sizes.append(0)
        groups[-1].append(part)
        sizes[-1] += num_bytes
    if len(groups) > 1 and sizes[-1] < target / 2 and not source(groups[-2][-1].path):
        last = groups.pop()
        groups[-1] += last
    return groups


def _documents(part: FileRange) -> pa.ChunkedArray:
    if part.path.endswith(".parquet"):
        return _parquet_texts(part)
    data, start = _read(part)
    since = f" after byte {start:,}" if start else ""
    if ".jsonl" in paths.name(part.path):
        lines = enumerate(data.splitlines(), start=1)
        found = [_json_text(line, f"{part.path}, line {n}{since}") for n, line in lines if line.strip()]
    else:
        found = list(text_documents(_decoded(data, part.path, start)))
    try:
        column = pa.array(found, pa.large_string())
    except UnicodeEncodeError:  # JSON may hold halves of surrogate pairs
        column = pa.array([without_surrogates(text) for text in found], pa.large_string())
    return pa.chunked_array([column])


def _decoded(data: bytes, path: str, start: int = 0) -> str:
    """Return the text of the bytes that begin at `start` of a file. Raises ValueError where they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {start + error.start:,}"
        raise ValueError(f"{path} is not UTF-8 at {where} ({error}); convert it, e.g. with iconv") from None


def _parquet_texts(part: FileRange) -> pa.ChunkedArray:
    with paths.open_file(fetch(part.path)) as f:
        file = _parquet(f, part.path)
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise ValueError(f"{part.path} has the columns {columns}, expected one named 'text'")
        type_ = file.schema_arrow.field("text").type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
            raise ValueError(f"{part.path}: expected the column 'text' to hold strings, got {type_}")
        chunks: list[pa.Array] = []
        for group in range(part.start, file.num_row_groups if part.stop is None else part.stop):
            try:
                chunks += file.read_row_group(group, columns=["text"]).column("text").chunks
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(part.path, f"row group {group}", error) from error
    return pa.chunked_array(chunks, type_)


def _parquet(f: IO[Any], path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "footer", error) from error


def _unreadable(path: str, where: str, error: object) -> ValueError:
    remedy = "removed; it is downloaded again" if source(path) else "written or downloaded again"
    cause = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
    return ValueError(f"{path}, {where}, cannot be read ({cause}); a damaged or cut file has to be {remedy}")


def _json_text(line: bytes, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: expected {{"text": "..."}}, got {line[:100]!r} ({type(error).__name__}: {error}); '
            "mend the line, or write or download the file again if it was cut"
        ) from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected 'text' to be a string, got {text!r:.100}")
    return text


def text_documents(text: str) -> Iterator[str]:
    """Cut plain text into documents of about 2,000 characters: whole paragraphs unless one is longer than that.

    >>> list(text_documents("one\\n\\ntwo\\n"))
    ['one\\n\\ntwo']
    >>> [len(document) for document in text_documents("word " * 300 + "\\n\\n" + "word " * 300)]
    [1499, 1499]
    """
    document = ""
    for paragraph in _paragraphs(text.replace("\r\n", "\n")):
        if document and len(document) + len(paragraph) > DOCUMENT_CHARS:
            yield document.strip()
            document = ""
        document += paragraph
    yield document.strip()


def _paragraphs(text: str) -> Iterator[str]:
    """Yield runs of whole lines, each ending after a blank line or before it exceeds the length of a document."""
    paragraph = ""
    for line in text.splitlines(keepends=True):
        if len(paragraph) + len(line) > DOCUMENT_CHARS:
            yield paragraph
            paragraph = ""
        paragraph += line
        if not line.strip():
            yield paragraph
            paragraph = ""
    yield paragraph


def _read(part: FileRange) -> tuple[bytes, int]:
    """Read the lines of a text file that begin within the part; return them and the byte where they begin."""
    with paths.open_file(part.path) as f:
        if part.path.endswith((".gz", ".zst")):
            return _decompressed(f, part.path), 0
        if part.stop is not None and (size := f.seek(0, os.SEEK_END)) < part.stop:
            raise _unreadable(part.path, f"at its end, byte {size:,}", f"it has had {part.stop:,} bytes or more")
        paragraphs = not part.path.endswith(".jsonl")
        start = _next_start(f, part.start, paragraphs)
        stop = None if part.stop is None else _next_start(f, part.stop, paragraphs)
        f.seek(start)
        return f.read(-1 if stop is None else stop - start), start


def _decompressed(f: IO[Any], path: str) -> bytes:
    """Return the content of a .gz or .zst file: one frame (gzip: member), or several as `cat a.zst b.zst` makes them.

    Raises:
        ValueError: the file is damaged, or ends within a frame, which zstandard's own reader passes over in silence.
    """
    zst = zstandard.ZstdDecompressor()
    new_frame = zst.decompressobj if path.endswith(".zst") else lambda: zlib.decompressobj(wbits=31)
    content, frame, complete, at = list[bytes](), new_frame(), False, 0
    while data := f.read(1 << 20):
        while data:
            try:
                content.append(frame.decompress(data))
            except (zlib.error, zstandard.ZstdError) as error:
                raise _unreadable(path, f"at about byte {at:,}", error) from error
            complete, rest = frame.eof, frame.unused_data
            at += len(data) - len(rest)
            data, frame = (rest, new_frame()) if complete else (b"", frame)
    if not complete:
        raise _unreadable(path, f"at its end, byte {at:,}", "the compressed data is incomplete")
    return b"".join(content)


def _next_start(f: IO[Any], offset: int, paragraphs: bool) -> int:
    """Return where the first line or paragraph at or after `offset` begins; a line, if the next blank one is far."""
    if not offset:
        return 0
    f.seek(offset - 1)
    f.readline()
    start = f.tell()
    while paragraphs and f.tell() - start < 32 * DOCUMENT_CHARS and f.readline().strip():
        pass
    return f.tell()

"""A corpus cut into blocks of documents that can be read independently: parquet, JSON lines and plain text."""

import gzip
import json
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


class Block(NamedTuple):
    """Documents that are read, counted or packed together: parts of one or more files, in the order of the corpus."""

    parts: tuple[FileRange, ...]


def blocks(shards: Sequence[str], *, min_bytes: int = 1 << 18) -> list[Block]:
    """Cut shards into blocks of about `min_bytes` of text or more (the last may have half of that).

    Blocks grow with the corpus up to 8 MB. Row groups of parquet files and compressed text files are not cut. A shard
    of the hub is one block, downloaded or not. Reads only file sizes and parquet footers.
    """
    with ThreadPoolExecutor(16) as pool:
        uncut = [sized for found in pool.map(_uncut_parts, shards) for sized in found]
    total = sum(num_bytes for part, num_bytes in uncut if not source(part.path))
    target = block_bytes(total, min_bytes)
    return [Block(tuple(parts)) for parts in _grouped((cut for sized in uncut for cut in _cut(*sized, target)), target)]


def block_bytes(total: int, min_bytes: int) -> int:
    """Return the size of a block in a corpus of `total` bytes: 1/64 of it, at most 8 MB, at least `min_bytes`."""
    return max(min_bytes, min(MAX_BLOCK_BYTES, total // MIN_BLOCKS))


def texts(block: Block) -> pa.ChunkedArray:
    """Read the documents of a block without the empty ones; download a missing hub shard first.

    Returns an Arrow column of strings, which the tokenizer reads in place; `.to_pylist()` gives Python strings. In
    parquet and JSON lines a document is the column or field `text`. Plain text is cut at blank lines, and paragraphs
    are joined up to about 2,000 characters; a longer paragraph is cut at line ends.

    Raises:
        ValueError: a file has no `text` or is not UTF-8; names the file.
    """
    columns = [_documents(part).cast(pa.large_string()) for part in block.parts]
    column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())
    return column.filter(pc.not_equal(column, ""))


def _uncut_parts(path: str) -> list[tuple[FileRange, int]]:
    """Return the parts of a file (row groups, or the whole file) and about how many bytes of text each has."""
    if hub := source(path):
        return [(FileRange(path), hub.shard_bytes)]
    if path.endswith(".parquet"):
        with paths.open_file(path) as f:
            metadata = pq.ParquetFile(f).metadata
        groups = range(metadata.num_row_groups)
        return [(FileRange(path, i, i + 1), metadata.row_group(i).total_byte_size) for i in groups]
    return [(FileRange(path), paths.size(path) * (1 if path.endswith((".jsonl", ".txt")) else 3))]


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
    group: list[FileRange] = []
    size = 0
    for part, num_bytes in parts:
        if source(part.path) and group:  # a hub shard is a block of its own
            groups.append(group)
            group, size = [], 0
        group.append(part)
        size += num_bytes
        if size >= target:
            groups.append(group)
            group, size = [], 0
    if group and groups and size < target / 2 and not source(groups[-1][-1].path):
        groups[-1] += group
    elif group:
        groups.append(group)
    return groups


def _documents(part: FileRange) -> pa.ChunkedArray:
    if part.path.endswith(".parquet"):
        return _parquet_texts(part)
    data = _read(part)
    if ".jsonl" in paths.name(part.path):
        found = [_json_text(line, part.path) for line in data.splitlines() if line.strip()]
    else:
        try:
            found = list(text_documents(data.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise ValueError(f"{part.path} is not UTF-8 ({error}); convert it first, e.g. with iconv") from None
    try:
        column = pa.array(found, pa.large_string())
    except UnicodeEncodeError:  # JSON may hold halves of surrogate pairs
        column = pa.array([without_surrogates(text) for text in found], pa.large_string())
    return pa.chunked_array([column])


def _parquet_texts(part: FileRange) -> pa.ChunkedArray:
    with paths.open_file(fetch(part.path)) as f:
        file = pq.ParquetFile(f)
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise ValueError(f"{part.path} has the columns {columns}, expected one named 'text'")
        stop = file.num_row_groups if part.stop is None else part.stop
        column = file.read_row_groups(range(part.start, stop), columns=["text"]).column("text")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{part.path}: expected the column 'text' to hold strings, got {column.type}")
    return column


def _json_text(line: bytes, path: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected lines like {{"text": "..."}}, got {line[:100]!r} ({type(error).__name__}: {error})'
        ) from None
    if not isinstance(text, str):
        raise ValueError(f"{path}: expected 'text' to be a string, got {text!r:.100}")
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


def _read(part: FileRange) -> bytes:
    """Read the lines of a text file that begin within the part."""
    with paths.open_file(part.path) as f:
        if part.path.endswith(".gz"):
            return gzip.GzipFile(fileobj=f).read()
        if part.path.endswith(".zst"):
            return zstandard.ZstdDecompressor().stream_reader(f, read_across_frames=True).read()
        find = _next_line if part.path.endswith(".jsonl") else _next_paragraph
        start = find(f, part.start)
        stop = None if part.stop is None else find(f, part.stop)
        f.seek(start)
        data: bytes = f.read(-1 if stop is None else stop - start)
        return data


def _next_line(f: IO[Any], offset: int) -> int:
    """Return where the first line at or after `offset` begins."""
    if offset:
        f.seek(offset - 1)
        f.readline()
        return f.tell()
    return 0


def _next_paragraph(f: IO[Any], offset: int) -> int:
    """Return where the first paragraph at or after `offset` begins; a line, if the next blank line is far away."""
    start = _next_line(f, offset)
    while offset and f.tell() - start < 32 * DOCUMENT_CHARS and (line := f.readline()):
        if not line.strip():
            break
    return f.tell() if offset else 0

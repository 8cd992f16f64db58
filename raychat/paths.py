"""One storage helper: a laptop path and a bucket (`s3://`, `gs://`, `memory://`) behave the same.

Every function takes a path or URL as a string. What is written appears whole or not at all: local files and folders get
a temporary name and are renamed; object stores show finished objects only, and a folder there is complete once it has
its `meta.json`, which is uploaded last.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from raychat import disk

LAST_FILE = "meta.json"  # uploaded last: a folder on an object store that has it is complete
_MARKS = ("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "created")  # of rewritten files


def home() -> str:
    """Return the default root of the storage: `RAYCHAT_HOME`, or ~/.cache/raychat."""
    return os.environ.get("RAYCHAT_HOME") or os.path.expanduser("~/.cache/raychat")


def on_this_machine(name: str) -> str:
    """Return the path of what each machine has for itself: in home, in ~/.cache/raychat where that is a bucket."""
    root = home()
    return join(absolute(root if is_local(root) else "~/.cache/raychat"), name)


def cache() -> str:
    """Return the folder of this machine's copies of remote files; `local` removes old ones."""
    return on_this_machine("copies")


def is_local(path: str) -> bool:
    """Tell whether `path` is a plain path of this machine (no URL scheme)."""
    return "://" not in path


def absolute(path: str) -> str:
    """Return a local path as an absolute one, and a URL without a slash at its end."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def join(base: str, *names: str) -> str:
    """Join components of a local path or URL with `/`."""
    return "/".join([base.rstrip("/") or "/", *names])


def name(path: str) -> str:
    """Return the last component of a path or URL."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def parent(path: str) -> str:
    """Return the folder of a path or URL.

    >>> parent("s3://bucket/runs/d20/sft/step_000100")
    's3://bucket/runs/d20/sft'
    """
    return path.rstrip("/").rsplit("/", 1)[0]


def relative(path: str, root: str) -> str:
    """Return `path` as seen from `root`, or as it is where it lies elsewhere; `under` is the inverse.

    >>> relative("/data/runs/tiny/base/step_000100", "/data"), relative("s3://other/step_000100", "/data")
    ('runs/tiny/base/step_000100', 's3://other/step_000100')
    """
    return path.removeprefix(root.rstrip("/") + "/")


def under(root: str, path: str) -> str:
    """Return a path that is relative to `root` as an absolute one; absolute paths and URLs stay as they are."""
    return path if path.startswith("/") or not is_local(path) else join(root, path)


def file_system(path: str) -> tuple[Any, str]:
    """Return a path's file system and the path there. It keeps no listings: other machines write, too."""
    return url_to_fs(path, use_listings_cache=False)


def exists(path: str) -> bool:
    fs, p = file_system(path)
    return bool(fs.exists(p))


def is_folder(path: str) -> bool:
    fs, p = file_system(path)
    return bool(fs.isdir(p))


def names(folder: str) -> list[str]:
    """Return the sorted names in a folder, without temporary ones; empty when there is no such folder."""
    fs, p = file_system(folder)
    try:
        entries = fs.ls(p, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = {name(e) for e in entries if e.rstrip("/") != p}  # consoles make an object "folder/"
    return sorted(found for found in inside if not found.startswith(".tmp-"))


def sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its name relative to the folder."""
    fs, p = file_system(folder)
    found = fs.find(p, detail=True).items()
    return {relative(file, p): int(info["size"]) for file, info in found if not file.endswith("/")}


def size(path: str) -> int:
    """Return a file's size in bytes."""
    fs, p = file_system(path)
    return int(fs.size(p))


def version(path: str) -> str:
    """Return a string that changes when a file is rewritten: its size, and its ETag or the time of its last change."""
    if is_local(path):
        status = os.stat(path)
        return f"{status.st_size} bytes, {status.st_mtime_ns}"
    fs, p = file_system(path)
    info = fs.info(p)
    return f"{info['size']} bytes, {next((info[mark] for mark in _MARKS if info.get(mark)), info)}"


def open_file(path: str, mode: str = "rb") -> IO[Any]:
    """Open a file for reading, or for writing that is not atomic."""
    fs, p = file_system(path)
    return fs.open(p, mode)


def read_bytes(path: str) -> bytes:
    fs, p = file_system(path)
    return bytes(fs.cat_file(p))


def read_range(path: str, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a file."""
    fs, p = file_system(path)
    return bytes(fs.cat_file(p, start=start, end=stop))


def read_text(path: str) -> str:
    return read_bytes(path).decode("utf-8")


def read_json(path: str) -> Any:
    return json.loads(read_bytes(path))


def write_bytes(path: str, data: bytes) -> None:
    """Write a file atomically, and make its folder when needed."""
    if not is_local(path):
        fs, p = file_system(path)
        fs.pipe_file(p, data)
        return
    with _renamed(path) as temporary, open(temporary, "wb") as f:
        f.write(data)


def write_text(path: str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def create(path: str, data: bytes) -> bool:
    """Write a file that is not there, and tell whether it was not. Of several calls at once, one writes.

    Readers may see a local file before it is whole.
    """
    try:
        if is_local(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "xb") as f:
                f.write(data)
        else:
            fs, p = file_system(path)
            fs.pipe_file(p, data, mode="create")
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _renamed(path: str) -> Iterator[str]:
    """Yield a name beside a local file; what is written there becomes the file when the block ends without an error."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _temporary_beside(path: str) -> str:
    folder, base = os.path.split(path.rstrip("/"))
    return os.path.join(folder, f".tmp-{base}-{uuid.uuid4().hex[:8]}")


def remove(path: str) -> None:
    """Remove a file or a whole folder, if there is one."""
    fs, p = file_system(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(p, recursive=True)


def rename(source: str, target: str) -> None:
    """Rename a local file or folder; on an object store, copy and delete."""
    fs, p = file_system(source)
    fs.mv(p, file_system(target)[1], recursive=True)


def local(path: str) -> str:
    """Return a local file with the same content: the file itself, or a copy in this machine's cache.

    A version of a file is downloaded only once. A copy lives for `disk.IN_USE_S` at least: open it by then.
    """
    if is_local(path):
        return path
    fs, p = file_system(path)
    key = hashlib.sha256(f"{path} {version(path)}".encode()).hexdigest()[:16]
    copy = join(cache(), f"{key}-{name(path)}")
    os.makedirs(cache(), exist_ok=True)
    with open(f"{cache()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no other process removes the copy between the next two lines
        if os.path.exists(copy):
            os.utime(copy)
            return copy
        disk.make_room(cache(), fs.size(p) or 0)  # a web server may not say
    with _renamed(copy) as temporary:
        fs.get_file(p, temporary)
    return copy


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """Yield an empty local folder that becomes `path` when the block ends without an error, in place of any old one."""
    if is_local(path):
        os.makedirs(os.path.dirname(path.rstrip("/")) or ".", exist_ok=True)
        temporary = _temporary_beside(path)
        os.makedirs(temporary)
    else:
        temporary = tempfile.mkdtemp(prefix="raychat-")
    try:
        yield temporary
        remove(path)
        if is_local(path):
            os.rename(temporary, path)
        else:
            _upload(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload(folder: str, path: str) -> None:
    """Copy a local folder's files to an object store, `meta.json` last."""
    fs, p = file_system(path)
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == Path(folder, LAST_FILE)):
        fs.put_file(str(file), join(p, file.relative_to(folder).as_posix()))

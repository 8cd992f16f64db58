"""What a driver prints, kept in a file beside what it makes."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from raychat import paths
from raychat.log import Throttle

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_UPLOAD_EVERY_S = 30.0


@contextlib.contextmanager
def transcript(path: str) -> Iterator[None]:
    """Append to a file what this process prints meanwhile, and what Ray prints here for its workers.

    Colours are left out, and so are progress bars, which a terminal draws over themselves. An object store gets the
    file now and then and at the end. What cannot be written is lost, and nothing else.
    """
    kept = _Kept(path)
    out, err = (cast(TextIO, _Both(stream, kept)) for stream in (sys.stdout, sys.stderr))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        kept.close()


class _Kept:
    """The file. A local one grows by what is printed; on an object store it is written whole."""

    def __init__(self, path: str) -> None:
        self._path, self._uploads = path, Throttle(_UPLOAD_EVERY_S)
        self._file: TextIO = io.StringIO()
        if paths.is_local(path):
            os.makedirs(paths.parent(path), exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (`close` closes it)
        elif paths.exists(path):
            self._file.write(paths.read_text(path))

    def write(self, text: str) -> None:
        text = _COLOUR.sub("", text)
        if self._file.closed or "\x1b" in text or "\r" in text:  # a thread that is late, or a bar
            return
        with contextlib.suppress(OSError):
            self._file.write(text)
            if self._uploads.due():
                self._upload()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._upload()
            self._file.close()

    def _upload(self) -> None:
        if isinstance(self._file, io.StringIO):
            paths.write_text(self._path, self._file.getvalue())


class _Both:
    """A stream whose text is also kept."""

    def __init__(self, stream: TextIO, kept: _Kept) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

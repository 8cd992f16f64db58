"""What a driver prints, kept in a file beside what it makes."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from raychat.log import GrowingFile

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


@contextlib.contextmanager
def transcript(path: str) -> Iterator[None]:
    """Append to a file what this process prints meanwhile, and what Ray prints here for its workers.

    Colours are left out, and so are progress bars, which a terminal draws over themselves. An object store gets the
    file now and then and at the end. What cannot be written is lost, and nothing else.
    """
    file = GrowingFile(path)
    out, err = (cast(TextIO, _Both(stream, file)) for stream in (sys.stdout, sys.stderr))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        with contextlib.suppress(OSError):
            file.flush()


class _Both:
    """A stream whose text is also kept in a file."""

    def __init__(self, stream: TextIO, file: GrowingFile) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        kept = _COLOUR.sub("", text)
        if "\x1b" not in kept and "\r" not in kept:  # else a bar
            with contextlib.suppress(OSError):
                self._file.append(kept)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

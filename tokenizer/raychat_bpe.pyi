"""Byte-level byte-pair encoding in Rust. Everything here runs without the GIL; wrong arguments raise ValueError."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, final

import numpy as np

class ArrowStream(Protocol):
    """An Arrow string column in chunks: `pyarrow.ChunkedArray` and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class ArrowArray(Protocol):
    """An Arrow string column in one piece: `pyarrow.StringArray` and others."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

# Strings, or an Arrow column of them, which is read in place; its nulls are empty texts. A name for type checkers only.
Texts: TypeAlias = Sequence[str] | ArrowStream | ArrowArray

@final
class Counts:
    """Words (UTF-8 bytes) and how often each occurs."""

    def __init__(self, texts: Texts, pattern: str, num_threads: int | None = None) -> None:
        """Count the words that a split pattern cuts texts into.

        num_threads: None = as many as RAYON_NUM_THREADS says, or cores. The counts do not depend on it.
        Raises ValueError for a pattern that does not compile or a regex that gives up on a text.
        """

    def __len__(self) -> int:
        """Return the number of different words."""

    @staticmethod
    def from_dict(counts: dict[bytes, int]) -> Counts: ...
    def to_dict(self) -> dict[bytes, int]: ...
    def to_sorted(self, num_parts: int = 1) -> list[bytes]:
        """Return the compact sorted form, in so many parts: a word's hash, the same everywhere, says which."""

    @staticmethod
    def from_sorted(parts: Sequence[bytes]) -> Counts:
        """Read sorted forms that have no word in common. Raises ValueError for bytes that are none."""

def count(texts: Texts, pattern: str, num_threads: int | None = None) -> dict[bytes, int]:
    """Count words as `Counts` does; return word -> occurrences."""

def merge(parts: Sequence[bytes], min_count: int = 1) -> tuple[bytes, int, int]:
    """Add up sorted forms in one pass: return a sorted form, how many words were cut, and how often these occurred.

    min_count: words that occur less often in all parts together are cut.
    """

def train(counts: Counts | dict[bytes, int], vocab_size: int) -> list[bytes]:
    """Learn byte-pair merges from counted words and return the tokens in the order of their ids.

    The first 256 tokens are the single bytes; token 256 + k is what the k-th merge makes. The most frequent pair is
    merged first, of equally frequent ones the pair with the smaller ids. Ends early when no pair is left.
    Raises ValueError when vocab_size is below 256 or a count is negative.
    """

@final
class Encoder:
    """Turns text into ids as tiktoken does: a piece that is a token is that one; else the smallest ids merge first."""

    def __init__(self, ranks: dict[bytes, int], specials: dict[str, int], pattern: str) -> None:
        """Make an encoder.

        ranks: token -> id, all 256 single bytes among them. specials: name -> id; text is never encoded to these.
        Raises ValueError when a byte is missing, a token is empty, an id occurs twice or the pattern does not compile.
        """

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""

    def encode_batch(
        self, texts: Texts, first: str | None = None, num_threads: int | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the ids of many texts, one after the other.

        first: name of a special token to put before each text. num_threads: None = RAYON_NUM_THREADS, or cores.
        Returns (ids, offsets): ids uint16, or uint32 when an id needs it; offsets int64 (texts + 1,), text i being
        ids[offsets[i] : offsets[i + 1]].
        """

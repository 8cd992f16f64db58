"""Byte-level byte-pair encoding in Rust. All work runs without the GIL; wrong arguments raise ValueError."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, final

import numpy as np

class ArrowStream(Protocol):
    """An Arrow string column in chunks, such as `pyarrow.ChunkedArray`."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class ArrowArray(Protocol):
    """An Arrow string column in one chunk, such as `pyarrow.StringArray`."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

# Strings, or an Arrow column of strings, read in place; a null is an empty text. Only type checkers see this name.
Texts: TypeAlias = Sequence[str] | ArrowStream | ArrowArray

@final
class Counts:
    """Words (UTF-8 bytes) and how often each occurs."""

    def __init__(self, texts: Texts, pattern: str, num_threads: int | None = None) -> None:
        """Count the words that a split pattern cuts texts into.

        Args:
            num_threads: None means RAYON_NUM_THREADS, or all cores. The counts do not depend on it.

        Raises:
            ValueError: If the pattern does not compile, or its regex reaches the backtracking limit on a text.
        """

    def __len__(self) -> int:
        """Return the number of distinct words."""

    def to_sorted(self, num_parts: int = 1) -> list[bytes]:
        """Return sorted counts, a compact form, in parts. A word's hash chooses its part, on every machine the same."""

    @staticmethod
    def from_sorted(parts: Sequence[bytes]) -> Counts:
        """Read sorted counts that have no word in common. Raises ValueError for any other bytes."""

def merge(parts: Sequence[bytes], min_count: int = 1) -> tuple[bytes, int, int]:
    """Add sorted counts up in one pass, and drop rare words.

    Args:
        min_count: Words whose sum is smaller are dropped.

    Returns:
        The sum as sorted counts, the number of dropped words, and the sum of their counts.
    """

def train(counts: Counts, vocab_size: int) -> list[bytes]:
    """Learn byte-pair merges from counted words and return the tokens in the order of their ids.

    The first 256 tokens are the single bytes; token 256 + k comes from the k-th merge. Each merge takes the most
    frequent pair, among equally frequent pairs the one with the smaller ids. Fewer tokens result when no pair is left.

    Raises:
        ValueError: If vocab_size is below 256, or the words have too many bytes in all.
    """

@final
class Encoder:
    """Turns text into the ids that tiktoken gives: a word that is a token is that token, any other is merged.

    Args:
        ranks: Token -> id. It contains all 256 single bytes.
        specials: Name -> id. Text never encodes to these ids.

    Raises:
        ValueError: If a byte is missing, a token is empty, an id occurs twice or the pattern does not compile.
    """

    def __init__(self, ranks: dict[bytes, int], specials: dict[str, int], pattern: str) -> None: ...
    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""

    def encode_batch(
        self, texts: Texts, first: str | None = None, num_threads: int | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the ids of many texts, one text after the other.

        Args:
            first: Name of a special token to put before each text.
            num_threads: None means RAYON_NUM_THREADS, or all cores.

        Returns:
            ids: uint16, or uint32 when an id needs it.
            offsets: int64 (texts + 1,). Text i has the ids[offsets[i] : offsets[i + 1]].
        """

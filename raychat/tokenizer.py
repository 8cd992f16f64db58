"""The tokenizer: byte-level BPE, trained and run in Rust, or single characters; stored as JSON, special tokens last."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from raychat import paths

if TYPE_CHECKING:
    import tiktoken
    from raychat_bpe import Counts, Encoder, Texts

# GPT-4's split pattern, but with at most two digits in a word, so that a small vocabulary is not spent on numbers.
SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"""
    r"""| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)

CHARACTER_PATTERN = "(?s:.)"  # cuts text into single characters

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

FILE_NAME = "tokenizer.json"
FILE_FORMAT = "raychat-bpe-1"


class Tokenizer:
    """Turns text into token ids and back.

    `tokens[i]` is token i in bytes. The special tokens take the ids after all tokens. Text never encodes to a special
    token: callers insert ids such as `special["<|bos|>"]` themselves.

    Raises:
        ValueError: A token is empty, a token or special token occurs twice, or there is no special token.
    """

    def __init__(
        self, tokens: Sequence[bytes], specials: Sequence[str] = SPECIAL_TOKENS, pattern: str = SPLIT_PATTERN
    ) -> None:
        self.tokens = list(tokens)
        self.specials = tuple(specials)
        self.pattern = pattern
        if len(set(self.tokens)) != len(self.tokens) or b"" in self.tokens:
            raise ValueError("a token occurs twice in the vocabulary, or is empty")
        if not self.specials or len(set(self.specials)) != len(self.specials):
            raise ValueError(f"special tokens must be different and at least one (the BOS), got {self.specials}")
        self.special = {name: len(self.tokens) + i for i, name in enumerate(self.specials)}

    @classmethod
    def train(cls, counts: "Counts", vocab_size: int) -> Self:
        """Learn the merges from words that `SPLIT_PATTERN` cut.

        `vocab_size` includes the special tokens. Fewer tokens result when the words have no pairs left to merge.

        Raises:
            ValueError: If vocab_size has no room for the 256 bytes and the special tokens.
        """
        import raychat_bpe  # here, so that the models run on machines without the crate

        num_specials = len(SPECIAL_TOKENS)
        if vocab_size < 256 + num_specials:
            raise ValueError(
                f"vocab_size is {vocab_size}, but the 256 bytes and {num_specials} special tokens need at least "
                f"{256 + num_specials}"
            )
        return cls(raychat_bpe.train(counts, vocab_size - num_specials))

    @classmethod
    def of_characters(cls, text: str) -> Self:
        """Make a tokenizer of the characters that a text holds, and a BOS; it refuses other text."""
        return cls([c.encode() for c in sorted(set(text))], SPECIAL_TOKENS[:1], CHARACTER_PATTERN)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tokens, self.specials, self.pattern)

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self.tokens) + len(self.specials)

    @property
    def bos(self) -> int:
        """The id of the first special token, which begins every document and conversation."""
        return len(self.tokens)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """uint16 if it holds every id, otherwise uint32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any token, any special token and the pattern."""
        return hashlib.sha256(json.dumps(self._as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def token_bytes(self) -> np.ndarray:
        """Return the length of every token in bytes, int32 (vocab_size,), 0 for special tokens."""
        return np.array([len(token) for token in self.tokens] + [0] * len(self.specials), dtype=np.int32)

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def _encoder(self) -> "Encoder":
        import raychat_bpe

        return raychat_bpe.Encoder(self._ranks | self._missing, self.special, self.pattern)

    @cached_property
    def _missing(self) -> dict[bytes, int]:
        """The bytes that are no token, with ids behind all others: the encoder wants every byte."""
        missing = [byte for i in range(256) if (byte := bytes([i])) not in self._ranks]
        return {byte: self.vocab_size + i for i, byte in enumerate(missing)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text. Names of special tokens are ordinary text; a lone surrogate becomes U+FFFD.

        Raises:
            ValueError: A character is no token, nor its bytes.
        """
        try:
            ids = self._encoder.encode(text)
        except UnicodeEncodeError:
            ids = self._encoder.encode(without_surrogates(text))
        if self._missing:
            self._refuse_missing(np.array(ids))
        return ids

    def _refuse_missing(self, ids: np.ndarray) -> None:
        if unknown := sorted(set(ids[ids >= self.vocab_size].tolist())):
            found = [byte for byte, i in self._missing.items() if i in unknown]
            raise ValueError(
                f"the text holds {b''.join(found)!r}; expected only characters of the {len(self.tokens)} that this "
                f"tokenizer was made of"
            )

    def encode_batch(
        self, texts: "Texts", bos: bool = False, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of many texts, one text after the other.

        Args:
            texts: Strings, or an Arrow string column, which is read in place.
            bos: Put a BOS before each text.
            num_threads: None means OMP_NUM_THREADS, which Ray sets to a task's CPUs, or all cores if it is not set.

        Returns:
            ids: (N,) of type `dtype`.
            offsets: (len(texts) + 1,) int64. Text i has the ids[offsets[i] : offsets[i + 1]].

        Raises:
            ValueError: As `encode`.
        """
        first = self.specials[0] if bos else None
        threads = default_threads() if num_threads is None else num_threads
        try:
            ids, offsets = self._encoder.encode_batch(texts, first, threads)
        except UnicodeEncodeError:
            strings = cast(Sequence[str], texts)  # an Arrow column is valid UTF-8
            ids, offsets = self._encoder.encode_batch([without_surrogates(text) for text in strings], first, threads)
        if self._missing:
            self._refuse_missing(ids)
        return ids, offsets

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids; a special token gives its name.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        parts, tokens = [], self._bytes
        for i in map(int, ids):
            if not 0 <= i < len(tokens):
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
            parts.append(tokens[i])
        return b"".join(parts)

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of every id, a special token's name included."""
        return [*self.tokens, *(name.encode() for name in self.specials)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids. A special token gives its name, bytes that are not UTF-8 give U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_tiktoken(self) -> "tiktoken.Encoding":
        """Export as a `tiktoken.Encoding` with the same ids."""
        import tiktoken

        return tiktoken.Encoding(
            name=f"raychat-{self.fingerprint}",
            pat_str=self.pattern,
            mergeable_ranks=self._ranks,
            special_tokens=self.special,
        )

    def _as_json(self) -> dict[str, Any]:
        return {
            "format": FILE_FORMAT,
            "pattern": self.pattern,
            "specials": list(self.specials),
            "tokens": [base64.b64encode(token).decode() for token in self.tokens],
        }

    def save(self, folder: str) -> None:
        """Write `tokenizer.json` into the folder (local or remote)."""
        paths.write_json(paths.join(folder, FILE_NAME), self._as_json())

    def save_once(self, folder: str) -> None:
        """Save to a folder without a tokenizer. Raises ValueError where the folder has another one than this."""
        if not paths.exists(paths.join(folder, FILE_NAME)):
            self.save(folder)
        elif (got := type(self).load(folder).fingerprint) != self.fingerprint:
            raise ValueError(f"{folder} holds another tokenizer ({got}, not {self.fingerprint}); choose another --run")

    @classmethod
    def load(cls, folder: str) -> Self:
        """Read the tokenizer that `save` wrote into the folder."""
        path = paths.join(folder, FILE_NAME)
        if not paths.exists(path):
            raise FileNotFoundError(f"no tokenizer at {path}: train one first (jobs/tok_train.py)")
        data = paths.read_json(path)
        if not isinstance(data, dict) or data.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} is not a tokenizer of the format {FILE_FORMAT!r}")
        tokens = [base64.b64decode(token, validate=True) for token in data["tokens"]]
        return cls(tokens, data["specials"], data["pattern"])


def default_threads() -> int | None:
    """Return OMP_NUM_THREADS, or None, which means all cores, if it is not set to a positive number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates with U+FFFD, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

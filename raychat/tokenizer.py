"""The byte-level BPE tokenizer: trained by the Rust crate `raychat_bpe`, stored as JSON, special tokens at the end."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import raychat_bpe
import tiktoken

from raychat import paths

# GPT-4's split pattern with numbers of one or two digits, so that a small vocabulary is not spent on numbers.
SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"""
    r"""| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)

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
    """Turn text into token ids and back.

    `tokens[i]` are the bytes of token i, the first 256 of them the single bytes in order; the special tokens take the
    ids after them. Text never encodes to a special token: `special["<|bos|>"]` and the like are put in by hand.

    Raises ValueError when the tokens do not begin with the 256 single bytes, repeat, or when a special token repeats.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        specials: Sequence[str] = SPECIAL_TOKENS,
        pattern: str = SPLIT_PATTERN,
    ) -> None:
        self.tokens = list(tokens)
        self.specials = tuple(specials)
        self.pattern = pattern
        if self.tokens[:256] != [bytes([byte]) for byte in range(256)]:
            raise ValueError("the first 256 tokens must be the single bytes 0..255 in order")
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError("a token occurs twice in the vocabulary")
        if not self.specials or len(set(self.specials)) != len(self.specials):
            raise ValueError(f"special tokens must be different and at least one (the BOS), got {self.specials}")
        self.special = {name: len(self.tokens) + i for i, name in enumerate(self.specials)}

    @classmethod
    def train(
        cls,
        counts: Mapping[bytes, int],
        vocab_size: int,
        specials: Sequence[str] = SPECIAL_TOKENS,
        pattern: str = SPLIT_PATTERN,
    ) -> Self:
        """Learn the merges from counted words.

        counts: word (bytes) -> how often it occurs, as `raychat_bpe.count` gives them with the same pattern.
        vocab_size: size of the whole vocabulary, special tokens included. Fewer tokens result when the words run out of
        pairs to merge. Raises ValueError when it does not hold the 256 bytes and the special tokens.
        """
        if vocab_size < 256 + len(specials):
            raise ValueError(
                f"vocab_size is {vocab_size}, but the 256 bytes and {len(specials)} special tokens need at least "
                f"{256 + len(specials)}"
            )
        return cls(raychat_bpe.train(dict(counts), vocab_size - len(specials)), specials, pattern)

    # ---------------------------------------------------------------------------------------------- facts

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.tokens) + len(self.specials)

    @property
    def bos(self) -> int:
        """Id of the first special token, which begins every document and conversation."""
        return len(self.tokens)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Smallest of uint16 and uint32 that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when any token, special token or the pattern does."""
        return hashlib.sha256(json.dumps(self._as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of every token, int32 (vocab_size,), 0 for special tokens."""
        return np.array([len(token) for token in self.tokens] + [0] * len(self.specials), dtype=np.int32)

    # ---------------------------------------------------------------------------------------------- encode, decode

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return self.to_tiktoken()

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Export as a `tiktoken.Encoding` with the same ids."""
        return tiktoken.Encoding(
            name=f"raychat-{self.fingerprint}",
            pat_str=self.pattern,
            mergeable_ranks={token: i for i, token in enumerate(self.tokens)},
            special_tokens=self.special,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text. The names of special tokens in it are ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], bos: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of many texts, one after the other.

        texts: strings. bos: put a BOS before each of them.
        Returns (ids, offsets): ids (N,) uint16, or uint32 when the vocabulary has more than 65,536 tokens; offsets
        (len(texts) + 1,) int64, text i being ids[offsets[i] : offsets[i + 1]].
        """
        start = [self.bos] if bos else []
        lists = [start + ids for ids in self._encoding.encode_ordinary_batch(list(texts))]
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        ids = np.fromiter((i for ids in lists for i in ids), dtype=self.dtype, count=int(offsets[-1]))
        return ids, offsets

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids, special tokens by their names.

        Raises ValueError for an id outside the vocabulary.
        """
        pieces = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
            pieces.append(self.tokens[i] if i < self.bos else self.specials[i - self.bos].encode())
        return b"".join(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids: special tokens by their names, bytes that are not UTF-8 as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # ---------------------------------------------------------------------------------------------- storage

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

    @classmethod
    def load(cls, folder: str) -> Self:
        """Read what `save` wrote.

        Raises FileNotFoundError when nothing is there, ValueError when it is something else.
        """
        path = paths.join(folder, FILE_NAME)
        if not paths.exists(path):
            raise FileNotFoundError(f"no tokenizer at {path}: train one first (jobs/tok_train.py)")
        data = paths.read_json(path)
        if not isinstance(data, dict) or data.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} is not a tokenizer of the format {FILE_FORMAT!r}")
        tokens = [base64.b64decode(token, validate=True) for token in data["tokens"]]
        return cls(tokens, data["specials"], data["pattern"])

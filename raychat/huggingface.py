"""Tokenizers as Hugging Face's `tokenizer.json`: written, and read where they are byte-level BPE."""

import itertools
from collections.abc import Mapping
from typing import Any

from raychat.tokenizer import Tokenizer

# GPT-2's, which a pre-tokenizer `ByteLevel` means by itself.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# GPT-2's byte-level characters: a printable Latin-1 character stands for its own byte, the characters from U+0100 on
# for the other 68 bytes.
_CHARACTERS = {byte: 0x100 + i for i, byte in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD])}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the contents of a `tokenizer.json` with the same ids."""
    text = [_as_text(token) for token in tokenizer.tokens]
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    halves = [_halves(i, tokenizer.tokens, ranks) for i, token in enumerate(tokenizer.tokens) if len(token) > 1]
    special = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **special} for name, i in tokenizer.special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(text)},
            "merges": [[_as_text(left), _as_text(right)] for left, right in halves],
        },
    }


def from_json(data: Mapping[str, Any]) -> Tokenizer:
    """Read the contents of a `tokenizer.json`, such as GPT-2's.

    Raises:
        ValueError: It is not byte-level BPE whose merges are in the order of their tokens' ids, or its special tokens
            do not come last.
    """
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE" or data.get("normalizer"):
        raise ValueError(
            f"tokenizer.json has model {model.get('type')!r} or a normalizer; expected byte-level BPE alone"
        )
    special = {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    ids: dict[str, int] = {token: i for token, i in model["vocab"].items() if token not in special}
    names = sorted(special, key=special.__getitem__)
    if [*sorted(ids.values()), *(special[name] for name in names)] != list(range(len(ids) + len(special))):
        raise ValueError("tokenizer.json has ids that are missing or occur twice, or special tokens before others")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = [ids.get("".join(merge), -1) for merge in merges]
    if made != sorted(made) or len(made) != sum(len(token) > 1 for token in ids):
        raise ValueError("tokenizer.json has merges that are not in the order of their tokens' ids, one for each")
    tokens = [_as_bytes(token) for token in sorted(ids, key=ids.__getitem__)]
    return Tokenizer(tokens, names, _pattern(data.get("pre_tokenizer") or {}))


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    """Return the split pattern of a byte-level pre-tokenizer."""
    *before, last = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    by_itself = last.get("use_regex", True)
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if not before and by_itself:
            return GPT2_PATTERN
        if len(before) == 1 and not by_itself and before[0].get("behavior") == "Isolated":
            pattern: str | None = before[0].get("pattern", {}).get("Regex")
            if pattern is not None:
                return pattern
    raise ValueError(f"tokenizer.json splits text by {pre_tokenizer}; expected ByteLevel, perhaps behind one Split")


def _halves(i: int, tokens: list[bytes], ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the two tokens that merge to token i: encode its bytes with the tokens before it only."""
    parts = [bytes([byte]) for byte in tokens[i]]
    while len(parts) > 2:
        made = [ranks.get(a + b, i) for a, b in itertools.pairwise(parts)]
        at = min(range(len(made)), key=made.__getitem__)
        if made[at] >= i:
            raise ValueError(f"token {i}, {tokens[i]!r}, is not merged from two tokens before it")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _as_text(token: bytes) -> str:
    return token.decode("latin-1").translate(_CHARACTERS)


def _as_bytes(text: str) -> bytes:
    try:
        return text.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"tokenizer.json has the token {text!r}, which is not byte-level") from None

"""Tokenizers of other projects: tiktoken's and nanoGPT's pickles, and Hugging Face's JSON."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import tiktoken

from raychat import huggingface, paths
from raychat.interchange import pickles
from raychat.tokenizer import CHARACTER_PATTERN, FILE_FORMAT, SPECIAL_TOKENS, Tokenizer

GPT2_VOCAB_SIZE = 50257
_END_OF_TEXT = "<|endoftext|>"  # GPT-2's only special token


def read_tokenizer(path: str) -> Tokenizer:
    """Read a tokenizer of raychat, nanochat, nanoGPT or transformers.

    Args:
        path: a file of `FILES`, or a folder with one of them, the first that is there.

    Raises:
        ValueError: There is none, or raychat has no such kind.
    """
    there = [path] if paths.name(path) in FILES else [p for name in FILES if paths.exists(p := paths.join(path, name))]
    if not there or not paths.exists(there[0]):
        raise ValueError(f"no tokenizer at {path}; expected {', '.join(FILES)}, or a folder with one of them")
    file = there[0]
    try:
        tokenizer = FILES[paths.name(file)](file)
        tokenizer.encode("")  # refuses a pattern that is no regular expression
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no tokenizer of a known form: {error!r:.200}") from error
    return tokenizer


def gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's BPE, which tiktoken downloads once.

    Raises:
        ValueError: There is no network, and no copy.
    """
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever the network raises
        raise ValueError(
            f"tiktoken could not fetch GPT-2's tokenizer ({error!r:.200}); pass --tokenizer with a folder of "
            "transformers' GPT-2 (tokenizer.json, or vocab.json and merges.txt)"
        ) from error
    return _of_ranks(encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens, "tiktoken's gpt2")


def write_tiktoken(tokenizer: Tokenizer, path: str) -> None:
    """Write a pickle of a `tiktoken.Encoding` with the same ids, as nanochat keeps it."""
    paths.write_bytes(path, pickle.dumps(tokenizer.to_tiktoken()))


def _from_tiktoken(file: str) -> Tokenizer:
    """Read a pickle of a `tiktoken.Encoding`, as the state that it holds; no Encoding is built."""
    state = pickles.read_file(file, {"tiktoken.core Encoding": dict})
    expected = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
    _check_fields(file, state, expected)
    return _of_ranks(state["pat_str"], state["mergeable_ranks"], state["special_tokens"], file)


def _of_ranks(pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int], file: str) -> Tokenizer:
    tokens, names = sorted(ranks, key=ranks.__getitem__), sorted(special, key=special.__getitem__)
    if {type(token) for token in tokens} != {bytes} or {type(name) for name in names} != {str}:
        raise ValueError(f"{file} has other tokens than bytes, or no special tokens with names")
    if [*(ranks[token] for token in tokens), *(special[name] for name in names)] != [*range(len(ranks) + len(special))]:
        raise ValueError(f"{file} has ids that are missing or occur twice, or special tokens before others")
    return Tokenizer(tokens, names, pattern)


def _from_characters(file: str) -> Tokenizer:
    """Read nanoGPT's meta.pkl, the characters of a text. A BOS is added behind them, as raychat needs one."""
    meta = pickles.read_file(file, {})
    _check_fields(file, meta, {"vocab_size": int, "stoi": dict, "itos": dict})
    characters = sorted(meta["stoi"], key=meta["stoi"].__getitem__)
    if {i: c for c, i in meta["stoi"].items()} != meta["itos"] or [*map(meta["stoi"].get, characters)] != [
        *range(meta["vocab_size"])
    ]:
        raise ValueError(f"{file} has a stoi that is not the inverse of itos, or ids that are missing")
    if not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise ValueError(f"{file} has entries that are not single characters")
    return Tokenizer([c.encode() for c in characters], SPECIAL_TOKENS[:1], CHARACTER_PATTERN)


def _check_fields(file: str, value: Any, expected: Mapping[str, type]) -> None:
    """Raise ValueError unless a value is a dictionary with exactly these fields of these types."""
    got = {k: type(v).__name__ for k, v in value.items()} if isinstance(value, dict) else type(value).__name__
    if got != (wanted := {name: kind.__name__ for name, kind in expected.items()}):
        raise ValueError(f"{file} holds {got!s:.200}; expected {wanted}")


def _from_json(file: str) -> Tokenizer:
    data = paths.read_json(file)
    return Tokenizer.load(paths.parent(file)) if data.get("format") == FILE_FORMAT else huggingface.from_json(data)


def _from_vocabulary(file: str) -> Tokenizer:
    """Read GPT-2's vocab.json and the merges.txt beside it."""
    lines = paths.read_text(paths.join(paths.parent(file), "merges.txt")).split("\n")
    vocab = paths.read_json(file)
    return huggingface.from_json(
        {
            "model": {"vocab": vocab, "merges": [line for line in lines if line and not line.startswith("#version")]},
            "added_tokens": [{"content": _END_OF_TEXT, "id": vocab[_END_OF_TEXT]}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        }
    )


FILES: dict[str, Callable[[str], Tokenizer]] = {
    "tokenizer.json": _from_json,
    "tokenizer.pkl": _from_tiktoken,
    "meta.pkl": _from_characters,
    "vocab.json": _from_vocabulary,
}

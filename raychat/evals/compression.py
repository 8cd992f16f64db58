"""Compare vocabularies: bytes per token on several kinds of text, beside well-known tokenizers."""

import inspect
import io
import json.decoder
import multiprocessing
import textwrap
from collections.abc import Callable, Mapping
from importlib import resources
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import tiktoken
from matplotlib.figure import Figure

PEERS = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}  # name -> tiktoken's name


class Compression(NamedTuple):
    """The size of one kind of text in tokens of several vocabularies."""

    kind: str
    num_bytes: int  # UTF-8
    num_tokens: dict[str, int]  # vocabulary -> tokens

    def bytes_per_token(self, name: str) -> float:
        return self.num_bytes / self.num_tokens[name]

    def saving(self, name: str, peer: str) -> float:
        """Return the share of the peer's tokens that the named vocabulary saves; negative where it needs more."""
        return 1 - self.num_tokens[name] / self.num_tokens[peer]


def measure(texts: Mapping[str, str], vocabularies: Mapping[str, Callable[[str], int]]) -> list[Compression]:
    """Count the tokens of every kind of text in every vocabulary; skip empty texts."""
    return [
        Compression(kind, len(text.encode()), {name: count(text) for name, count in vocabularies.items()})
        for kind, text in texts.items()
        if text
    ]


def samples() -> dict[str, str]:
    """Return the texts that need no download, by kind: news, math, other scripts, and code of Python's library."""
    folder = resources.files(__package__) / "texts"
    kinds = {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("news", "math", "scripts")}
    kinds["code"] = "\n\n".join(inspect.getsource(module) for module in (textwrap, json.decoder))
    return kinds


def peer(name: str, timeout_s: float = 20.0) -> tiktoken.Encoding:
    """Return one of tiktoken's encodings, from tiktoken's cache or its download address.

    Raises:
        OSError: it is neither in the cache nor downloaded within `timeout_s`.
    """
    try:
        with ThreadPool(1) as pool:  # a daemon thread, as tiktoken sets no time limit of its own
            return pool.apply_async(tiktoken.get_encoding, (name,)).get(timeout_s)
    except multiprocessing.TimeoutError:
        raise OSError(f"no answer within {timeout_s:.0f} s") from None
    except Exception as e:  # of requests, the file system or the parser
        raise OSError(f"{type(e).__name__}: {textwrap.shorten(str(e), 120)}") from e


def table(rows: list[Compression], name: str) -> str:
    """Return a Markdown table: bytes per token of every vocabulary, and `name`'s tokens against each of the others."""
    names = list(rows[0].num_tokens)
    peers = [other for other in names if other != name]
    header = ["text", "bytes", *(f"{n} bytes/token" for n in names), *(f"tokens against {p}" for p in peers)]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        cells = [row.kind, f"{row.num_bytes:,}", *(f"{row.bytes_per_token(n):.3f}" for n in names)]
        cells += [f"{-row.saving(name, p):+.1%}" for p in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[Compression]) -> str:
    """Draw the bytes per token as a bar chart; return its SVG."""
    names = list(rows[0].num_tokens)
    figure = Figure(figsize=(1.5 + 1.3 * len(rows), 3.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [row.bytes_per_token(name) for row in rows]
        axes.bar([x + (i - (len(names) - 1) / 2) * width for x in range(len(rows))], heights, width, label=name)
    axes.set_xticks(range(len(rows)), [row.kind for row in rows])
    axes.set_ylabel("UTF-8 bytes per token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    return out.getvalue()

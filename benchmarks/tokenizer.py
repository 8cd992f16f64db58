"""Compare the tokenizer's speed and memory with others from PyPI on the same text, and check that results agree.

    .venv/bin/pip install ./tokenizer -e .[bench]
    .venv/bin/python benchmarks/tokenizer.py [--data FOLDER_OR_FILES ...]

Each comparison runs in its own process, with as many cores as threads. The contenders take turns; times are medians.
Peers that are not installed are left out. Without --data the text is the parquet shards in ../shared/data/english, or
the Python sources of this environment if there are none. The last line of the output is JSON.
"""

import argparse
import base64
import functools
import importlib
import importlib.util
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import raychat_bpe

from raychat.huggingface import to_json
from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

NUM_TOKENS = 32_759  # 2^15 with the special tokens
TEXT_BYTES = 64_000_000
ENCODE_BYTES = 20_000_000  # timed; ids are compared on all of the text
BATCH = 128  # documents per call
ENGLISH = Path(__file__).parent.parent.parent / "shared" / "data" / "english"
SOURCES = Path(np.__file__).parent.parent  # of the packages in this environment

Contender = Callable[[], Any]
Encode = Callable[[Sequence[str]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help="parquet or text files, or folders of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the comparison that this process runs
    args = parser.parse_args()
    if args.only:
        print(json.dumps(COMPARISONS[args.only](args)))
        return

    def compare(name: str, threads: int) -> Any:
        return in_process([*sys.argv[1:], "--only", name, "--threads", str(threads)], threads)

    train = compare("train", args.threads)
    count = compare("count", args.threads)
    memory = {name: compare(f"memory_{name}", args.threads)["peak_mb"] for name in ("none", "rustbpe", "raychat")}
    one, more = compare("encode", 1), compare("encode", args.threads)
    result = {
        "text": train["text"],
        "threads": args.threads,
        "train_speedup_vs_rustbpe": ratio(train["seconds"], "rustbpe"),
        "count_speedup_vs_gigatoken": ratio(count["seconds"], "gigatoken"),
        "encode_speedup_vs_tiktoken_1t": ratio(one["seconds"], "tiktoken"),
        f"encode_speedup_vs_tiktoken_{args.threads}t": ratio(more["seconds"], "tiktoken"),
        "encode_speedup_vs_best_peer": min((best_peer(e) for e in (one, more)), key=lambda x: x or 0.0),
        "identical_merges": train["identical_merges"],
        "identical_ids": one["identical_ids"] and more["identical_ids"],
        "peak_rss_vs_rustbpe": memory["raychat"] / memory["rustbpe"] if memory["rustbpe"] else None,
        "details": {
            "train": train,
            "count": count,
            "encode_1t": one,
            f"encode_{args.threads}t": more,
            "rss_mb": memory,
        },
    }
    for name, value in result.items():
        if name != "details":
            print(f"{name:34} {value if not isinstance(value, float) else round(value, 2)}")
    print(json.dumps(result))


def in_process(arguments: list[str], threads: int) -> Any:
    """Run this file with `threads` threads on as many cores; return the JSON of its last line."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
    }
    cores = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    print(f"... {arguments[-3]}, {threads} threads: {done.stdout.splitlines()[-1][:200]}", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def ratio(seconds: dict[str, float], peer: str) -> float | None:
    """Return how many times faster raychat is than the peer; None where the peer is not installed."""
    return seconds[peer] / seconds["raychat"] if peer in seconds else None


def best_peer(encode: dict[str, Any]) -> float | None:
    """Return how many times faster raychat is than the fastest peer with the right ids, None without one."""
    right = [s for name, s in encode["seconds"].items() if name != "raychat" and not encode["wrong_documents"][name]]
    return min(right) / encode["seconds"]["raychat"] if right else None


def median_seconds(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Time the contenders in turn, after a warm-up round; return their median seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def documents(args: argparse.Namespace) -> list[str]:
    """Return documents of about TEXT_BYTES characters in all."""
    roots = [Path(name) for name in args.data] or ([ENGLISH] if ENGLISH.is_dir() else [SOURCES])
    texts, size = [], 0
    for text in (text for root in roots for file in files(root) for text in read(file)):
        texts.append(text)
        size += len(text)
        if size >= TEXT_BYTES:
            break
    return texts


def files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    kinds = ["*.py"] if root == SOURCES else ["*.parquet", "*.txt", "*.py"]
    yield from next((found for kind in kinds if (found := sorted(root.rglob(kind)))), [])


def read(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file, columns=["text"])["text"].to_pylist())
    return [file.read_text(encoding="utf-8", errors="replace")]


def describe(texts: list[str]) -> dict[str, int]:
    return {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}


def train_raychat(texts: list[str]) -> list[bytes]:
    return raychat_bpe.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), NUM_TOKENS)


def train_rustbpe(texts: list[str]) -> list[bytes]:
    tokenizer = importlib.import_module("rustbpe").Tokenizer()
    tokenizer.train_from_iterator(iter(texts), NUM_TOKENS, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(tokenizer.get_mergeable_ranks(), key=lambda item: item[1])]


def compare_train(args: argparse.Namespace) -> dict[str, Any]:
    """Time from documents to tokens."""
    texts = documents(args)
    contenders: dict[str, Contender] = {"raychat": lambda: train_raychat(texts)}
    if installed("rustbpe"):
        contenders["rustbpe"] = lambda: train_rustbpe(texts)
    same = train_raychat(texts) == train_rustbpe(texts) if installed("rustbpe") else None
    counts = raychat_bpe.Counts(texts, SPLIT_PATTERN)
    seconds = median_seconds(contenders, max(1, args.rounds // 2))
    alone = median_seconds({"merging": lambda: raychat_bpe.train(counts, NUM_TOKENS)}, args.rounds)
    return {"text": describe(texts), "seconds": seconds, "of_that": alone, "identical_merges": same}


def compare_count(args: argparse.Namespace) -> dict[str, Any]:
    """Time from documents to counts. gigatoken splits by another pattern."""
    texts = documents(args)
    contenders: dict[str, Contender] = {"raychat": lambda: raychat_bpe.Counts(texts, SPLIT_PATTERN)}
    if installed("gigatoken"):
        gigatoken_rs = importlib.import_module("gigatoken.gigatoken_rs")
        separator = b"<|endoftext|>"
        joined = separator.join(text.encode() for text in texts)
        contenders["gigatoken"] = lambda: gigatoken_rs.pretokenized_counts(joined, separator)
    return {"seconds": median_seconds(contenders, args.rounds)}


def peak_memory(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train with one contender, or only load the text for `none`; return this process's peak memory."""
    texts = documents(args)
    if name == "rustbpe" and not installed("rustbpe"):
        return {"peak_mb": None}
    if name != "none":
        {"raychat": train_raychat, "rustbpe": train_rustbpe}[name](texts)
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compare_encode(args: argparse.Namespace) -> dict[str, Any]:
    """Time from documents, BATCH per call, to ids."""
    texts = documents(args)
    tokenizer = Tokenizer(train_raychat(texts), SPECIAL_TOKENS)
    encoders = {name: make(tokenizer, args.threads) for name, (module, make) in ENCODERS.items() if installed(module)}
    expected = [ids for batch in batches(texts) for ids in as_lists(encoders["tiktoken"](batch))]
    wrong = {}
    for name, encode in encoders.items():
        got = (ids for batch in batches(texts) for ids in as_lists(encode(batch)))
        wrong[name] = sum(a != b for a, b in zip(got, expected, strict=True))
    ends = np.cumsum([len(text) for text in texts])
    timed = texts[: int(np.searchsorted(ends, ENCODE_BYTES)) + 1]
    contenders = {name: functools.partial(encode_batches, encode, timed) for name, encode in encoders.items()}
    seconds = median_seconds(contenders, args.rounds)
    megabytes = describe(timed)["bytes"] / 1e6
    return {
        "seconds": seconds,
        "mb_per_s": {name: round(megabytes / s, 1) for name, s in seconds.items()},
        "wrong_documents": wrong,
        "identical_ids": wrong["raychat"] == 0,
    }


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))


def encode_batches(encode: Encode, texts: Sequence[str]) -> None:
    for batch in batches(texts):
        encode(batch)


def as_lists(encoded: Any) -> list[list[int]]:
    """Convert what an encoder returns to lists: lists, or (ids, offsets) as arrays or bytes."""
    if isinstance(encoded, list):
        return encoded
    ids, offsets = encoded
    if isinstance(ids, bytes):
        ids, offsets = np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)
    return [ids[int(a) : int(b)].tolist() for a, b in itertools.pairwise(offsets)]


def encode_raychat(tokenizer: Tokenizer, threads: int) -> Encode:
    return lambda batch: tokenizer.encode_batch(batch, num_threads=threads)


def encode_tiktoken(tokenizer: Tokenizer, threads: int) -> Encode:
    encoding = tokenizer.to_tiktoken()
    return lambda batch: encoding.encode_ordinary_batch(list(batch), num_threads=threads)


def encode_riptoken(tokenizer: Tokenizer, threads: int) -> Encode:
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    core = importlib.import_module("riptoken").CoreBPE(ranks, {}, tokenizer.pattern)
    return lambda batch: core.encode_ordinary_batch(batch)


def encode_splintr(tokenizer: Tokenizer, threads: int) -> Encode:
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokenizer.tokens))
    greedy = tokenizer.pattern.replace("?+", "?").replace("++", "+")  # the same words; its regex engine needs it
    encoder = importlib.import_module("splintr").Tokenizer.from_bytes("".join(lines).encode(), greedy, {})
    return lambda batch: encoder.encode_batch_flat(batch)


def encode_fastokens(tokenizer: Tokenizer, threads: int) -> Encode:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        exported = to_json(tokenizer) | {"added_tokens": []}
        json.dump(exported, file)
        file.flush()
        encoder = importlib.import_module("fastokens._native").Tokenizer.from_file(file.name)
    return lambda batch: encoder.encode_batch_flat(batch)


# Name -> module to be installed, and what makes its encoder from a tokenizer and the number of threads.
ENCODERS: dict[str, tuple[str, Callable[[Tokenizer, int], Encode]]] = {
    "raychat": ("raychat_bpe", encode_raychat),
    "tiktoken": ("tiktoken", encode_tiktoken),
    "riptoken": ("riptoken", encode_riptoken),
    "splintr-rs": ("splintr", encode_splintr),
    "fastokens": ("fastokens", encode_fastokens),
}
COMPARISONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "train": compare_train,
    "count": compare_count,
    "encode": compare_encode,
    **{f"memory_{name}": functools.partial(peak_memory, name) for name in ("none", "rustbpe", "raychat")},
}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    main()

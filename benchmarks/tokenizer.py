"""Speed and memory of the tokenizer against others from PyPI, on the same text, with identical results checked.

    .venv/bin/pip install ./tokenizer -e .[bench]
    .venv/bin/python benchmarks/tokenizer.py [--data FOLDER_OR_FILES ...]

Each comparison runs in a process of its own with so many threads on so many cores, its contenders taking turns; times
are medians. Peers that are not installed are left out. Without --data: the parquet shards in ../shared/data/english if
they are there, else the Python sources of this environment. The last line is JSON.
"""

import argparse
import base64
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

from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

NUM_TOKENS = 32_759  # 2^15 with the special tokens
TEXT_BYTES = 64_000_000
ENCODE_BYTES = 20_000_000  # timed; ids are compared on all of the text
BATCH = 128  # documents a call
ENGLISH = Path(__file__).parent.parent.parent / "shared" / "data" / "english"
SOURCES = Path(np.__file__).parent.parent  # of the packages in this environment

Work = Callable[[], Any]


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
    """Run this file with so many threads on as many cores; return what its last line says."""
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
    """Return how many times faster raychat is than the fastest peer that gives the right ids."""
    right = [s for name, s in encode["seconds"].items() if name != "raychat" and not encode["wrong_documents"][name]]
    return min(right) / encode["seconds"]["raychat"] if right else None


def median_seconds(contenders: dict[str, Work], rounds: int) -> dict[str, float]:
    """Time the contenders in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


# ---------------------------------------------------------------------------------------------- the text


def documents(args: argparse.Namespace) -> list[str]:
    """Return the documents to work on."""
    roots = [Path(name) for name in args.data] or ([ENGLISH] if ENGLISH.is_dir() else [SOURCES])
    texts: list[str] = []
    size = 0
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


# ---------------------------------------------------------------------------------------------- comparisons


def train_raychat(texts: list[str]) -> list[bytes]:
    return raychat_bpe.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), NUM_TOKENS)


def train_rustbpe(texts: list[str]) -> list[bytes]:
    tokenizer = importlib.import_module("rustbpe").Tokenizer()
    tokenizer.train_from_iterator(iter(texts), NUM_TOKENS, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(tokenizer.get_mergeable_ranks(), key=lambda item: item[1])]


def compare_train(args: argparse.Namespace) -> dict[str, Any]:
    """From documents to tokens."""
    texts = documents(args)
    contenders: dict[str, Work] = {"raychat": lambda: train_raychat(texts)}
    if installed("rustbpe"):
        contenders["rustbpe"] = lambda: train_rustbpe(texts)
    same = train_raychat(texts) == train_rustbpe(texts) if installed("rustbpe") else None
    counts = raychat_bpe.Counts(texts, SPLIT_PATTERN)
    seconds = median_seconds(contenders, max(1, args.rounds // 2))
    alone = median_seconds({"merging": lambda: raychat_bpe.train(counts, NUM_TOKENS)}, args.rounds)
    return {"text": describe(texts), "seconds": seconds, "of_that": alone, "identical_merges": same}


def compare_count(args: argparse.Namespace) -> dict[str, Any]:
    """From documents to counts; gigatoken's are of another pattern."""
    texts = documents(args)
    contenders: dict[str, Work] = {"raychat": lambda: raychat_bpe.Counts(texts, SPLIT_PATTERN)}
    if installed("gigatoken"):
        gigatoken_rs = importlib.import_module("gigatoken.gigatoken_rs")
        separator = b"<|endoftext|>"
        joined = separator.join(text.encode() for text in texts)
        contenders["gigatoken"] = lambda: gigatoken_rs.pretokenized_counts(joined, separator)
    return {"seconds": median_seconds(contenders, args.rounds)}


def memory_none(args: argparse.Namespace) -> dict[str, Any]:
    """The text and the imports alone."""
    documents(args)
    return peak()


def memory_raychat(args: argparse.Namespace) -> dict[str, Any]:
    train_raychat(documents(args))
    return peak()


def memory_rustbpe(args: argparse.Namespace) -> dict[str, Any]:
    if not installed("rustbpe"):
        return {"peak_mb": None}
    train_rustbpe(documents(args))
    return peak()


def peak() -> dict[str, Any]:
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compare_encode(args: argparse.Namespace) -> dict[str, Any]:
    """From documents, 128 a call, to ids."""
    texts = documents(args)
    tokenizer = Tokenizer(train_raychat(texts), SPECIAL_TOKENS)
    encoders = {name: make(tokenizer, args.threads) for name, make in ENCODERS.items() if installed(MODULE[name])}
    expected = [ids for batch in batches(texts) for ids in as_lists(encoders["tiktoken"](batch))]
    wrong = {}
    for name, encode in encoders.items():
        got = (ids for batch in batches(texts) for ids in as_lists(encode(batch)))
        wrong[name] = sum(a != b for a, b in zip(got, expected, strict=True))
    ends = np.cumsum([len(text) for text in texts])
    timed = texts[: int(np.searchsorted(ends, ENCODE_BYTES)) + 1]
    work = {name: over_batches(encode, timed) for name, encode in encoders.items()}
    seconds = median_seconds(work, args.rounds)
    megabytes = describe(timed)["bytes"] / 1e6
    return {
        "seconds": seconds,
        "mb_per_s": {name: round(megabytes / s, 1) for name, s in seconds.items()},
        "wrong_documents": wrong,
        "identical_ids": wrong["raychat"] == 0,
    }


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))


def over_batches(encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> Work:
    def work() -> None:
        for batch in batches(texts):
            encode(batch)

    return work


def as_lists(encoded: Any) -> list[list[int]]:
    """Bring what an encoder returns, lists or (ids, offsets) as arrays or bytes, into lists."""
    if isinstance(encoded, list):
        return encoded
    ids, offsets = encoded
    if isinstance(ids, bytes):
        ids, offsets = np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)
    return [ids[int(a) : int(b)].tolist() for a, b in itertools.pairwise(offsets)]


# ---------------------------------------------------------------------------------------------- encoders


def encode_raychat(tokenizer: Tokenizer, threads: int) -> Callable[[Sequence[str]], Any]:
    return lambda batch: tokenizer.encode_batch(batch, num_threads=threads)


def encode_tiktoken(tokenizer: Tokenizer, threads: int) -> Callable[[Sequence[str]], Any]:
    encoding = tokenizer.to_tiktoken()
    return lambda batch: encoding.encode_ordinary_batch(list(batch), num_threads=threads)


def encode_riptoken(tokenizer: Tokenizer, threads: int) -> Callable[[Sequence[str]], Any]:
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    core = importlib.import_module("riptoken").CoreBPE(ranks, {}, tokenizer.pattern)
    return lambda batch: core.encode_ordinary_batch(batch)


def encode_splintr(tokenizer: Tokenizer, threads: int) -> Callable[[Sequence[str]], Any]:
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokenizer.tokens))
    greedy = tokenizer.pattern.replace("?+", "?").replace("++", "+")  # the same pieces; its regex engine asks for that
    encoder = importlib.import_module("splintr").Tokenizer.from_bytes("".join(lines).encode(), greedy, {})
    return lambda batch: encoder.encode_batch_flat(batch)


def encode_fastokens(tokenizer: Tokenizer, threads: int) -> Callable[[Sequence[str]], Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        exported = tokenizer.to_huggingface() | {"added_tokens": []}
        json.dump(exported, file)
        file.flush()
        encoder = importlib.import_module("fastokens._native").Tokenizer.from_file(file.name)
    return lambda batch: encoder.encode_batch_flat(batch)


MODULE = {
    "raychat": "raychat_bpe",
    "tiktoken": "tiktoken",
    "riptoken": "riptoken",
    "splintr-rs": "splintr",
    "fastokens": "fastokens",
}
ENCODERS = {
    "raychat": encode_raychat,
    "tiktoken": encode_tiktoken,
    "riptoken": encode_riptoken,
    "splintr-rs": encode_splintr,
    "fastokens": encode_fastokens,
}
COMPARISONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "train": compare_train,
    "count": compare_count,
    "encode": compare_encode,
    "memory_none": memory_none,
    "memory_raychat": memory_raychat,
    "memory_rustbpe": memory_rustbpe,
}


def installed(module: str) -> bool:
    """Tell whether a peer is there."""
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    main()

"""Train the tokenizer: count the words of the training shards on the cluster, learn the merges, save them.

python jobs/tok_train.py --run tiny --data tinyworld --vocab-size 2048
python jobs/tok_train.py --run d20 --data climbmix --num-shards 9 --cluster.workers 8
"""

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from raychat import paths
from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    """Train a byte-level BPE tokenizer and save it under the run's name."""

    run: str = "tiny"  # name of the run; the tokenizer goes to runs/<run>/tokenizer
    data: tuple[str, ...] = ("tinyworld",)  # tinyworld, climbmix, fineweb-edu, or files, folders and globs
    num_shards: int | None = None  # training shards to use, the first ones; None = all
    num_val: int = 1  # shards at the end that are held out for validation and not counted
    vocab_size: int = 32768  # size of the vocabulary, special tokens included
    max_chars: int = 2_000_000_000  # stop counting after this many characters
    doc_cap: int = 10_000  # count only this many characters at the beginning of each document
    min_count: int = 1  # drop words that occur less often; it saves memory on a corpus of terabytes
    overwrite: bool = False  # replace a tokenizer that was trained with other settings
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        from raychat.tokenizer import SPECIAL_TOKENS

        at_least(
            self, num_shards=1, num_val=1, vocab_size=256 + len(SPECIAL_TOKENS), max_chars=1, doc_cap=1, min_count=1
        )


def run(args: Args) -> dict[str, Any]:
    """Train the run's tokenizer, or return at once if it was trained with the same settings before.

    Returns:
        The contents of `train.json` beside the tokenizer: settings, figures, fingerprint.

    Raises:
        ValueError: If the run has a tokenizer of other settings and `overwrite` is not set.
    """
    folder = args.cluster.run_folder(args.run, "tokenizer")
    settings = settings_of(args)
    done = finished(folder, settings, args.overwrite)
    if done:
        print(f"tokenizer of {args.run}: done already, {done['vocab_size']:,} tokens ({done['fingerprint']})")
        return done

    from raychat.cluster.map import actors_per_core
    from raychat.data import corpus, reading
    from raychat.data.count import count_words
    from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

    started = time.monotonic()
    train, _ = corpus.split(corpus.shards(args.data, args.cluster.storage(), args.num_shards), args.num_val)
    blocks = reading.blocks(train)
    with closing(actors_per_core(args.cluster, len(blocks), name="count words")) as actors:
        counted = count_words(
            blocks,
            actors,
            pattern=SPLIT_PATTERN,
            max_chars=args.max_chars,
            doc_cap=args.doc_cap,
            min_count=args.min_count,
        )
    count_s = time.monotonic() - started
    tokenizer = Tokenizer.train(counted.counts, args.vocab_size)
    summary = {
        "settings": settings,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "characters": counted.chars,
        "documents": counted.documents,
        "unique_words": len(counted.counts),
        "cut_words": counted.cut_words,
        "cut_occurrences": counted.cut_occurrences,
        "characters_per_s": counted.chars / count_s,
        "wall_s": time.monotonic() - started,
    }
    paths.write_json(paths.join(folder, "train.json"), summary)
    tokenizer.save(folder)
    if counted.cut_words:
        print(
            f"dropped {counted.cut_words:,} words that occur less than {args.min_count} times, "
            f"{counted.cut_occurrences:,} occurrences in all"
        )
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the text has pairs for only {tokenizer.vocab_size:,} of {args.vocab_size:,} tokens")
    print(
        f"tokenizer of {args.run}: {tokenizer.vocab_size:,} tokens from {counted.chars:,} characters of "
        f"{counted.documents:,} documents in {summary['wall_s']:.1f} s, fingerprint {tokenizer.fingerprint}"
    )
    return summary


def settings_of(args: Args) -> dict[str, Any]:
    """Return the settings that the tokenizer depends on, which exclude the cluster."""
    return {
        "data": list(args.data),
        "num_shards": args.num_shards,
        "num_val": args.num_val,
        "vocab_size": args.vocab_size,
        "max_chars": args.max_chars,
        "doc_cap": args.doc_cap,
        "min_count": args.min_count,
    }


def finished(folder: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the summary of a tokenizer already trained with these settings, or None if it must be trained."""
    if not paths.exists(paths.join(folder, "tokenizer.json")):
        return None
    there = paths.join(folder, "train.json")
    summary = paths.read_json(there) if paths.exists(there) else {"settings": "unknown"}
    if summary["settings"] == settings:
        return summary
    if overwrite:
        paths.remove(paths.join(folder, "tokenizer.json"))  # first: a killed run must not leave it beside new settings
        return None
    raise ValueError(
        f"{folder} has a tokenizer trained with {summary['settings']}, asked for {settings}: "
        "choose another --run, or --overwrite (a model trained with the old one no longer fits)"
    )


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args))

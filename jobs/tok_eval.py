"""Compare the run's tokenizer with GPT-2's and GPT-4's: bytes per token on several kinds of text.

    python jobs/tok_eval.py --run tiny
    python jobs/tok_eval.py --run d20 --data climbmix --files notes.md main.c

If tiktoken cannot fetch the other vocabularies, the job says so and shows the run's alone.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from raychat import paths
from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    """Measure how well the run's tokenizer compresses."""

    run: str = "tiny"  # name of the run whose tokenizer is measured
    data: tuple[str, ...] = ("tinyworld",)  # corpus whose validation shards are one of the texts; none = no such text
    num_shards: int | None = None  # training shards of the corpus, as for tok_train
    num_val: int = 1  # validation shards of the corpus, as for tok_train
    files: tuple[str, ...] = ()  # more texts: files or URLs, shown by name
    max_chars: int = 1_000_000  # measure only this many characters at the beginning of each text
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, num_shards=1, num_val=1, max_chars=1)


def run(args: Args) -> dict[str, Any]:
    """Print a table and write `eval.json` and `eval.svg` beside the tokenizer.

    Returns:
        The contents of `eval.json`.

    Raises:
        FileNotFoundError: If the run has no tokenizer.
    """
    from raychat.evals import compression
    from raychat.tokenizer import Tokenizer

    folder = args.cluster.run_folder(args.run, "tokenizer")
    tokenizer = Tokenizer.load(folder)
    vocabularies = {args.run: lambda text: len(tokenizer.encode(text))}
    missing = {}
    for name, encoding in compression.PEERS.items():
        try:
            vocabularies[name] = token_counter(compression.peer(encoding))
        except OSError as error:
            missing[name] = str(error)
            print(f"{name}: tiktoken has no {encoding} here and could not fetch it ({error})")

    rows = compression.measure(texts_of(args), vocabularies)
    print(compression.table(rows, args.run))
    result = {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "missing": missing,
        "texts": {
            row.kind: {
                "bytes": row.num_bytes,
                "tokens": row.num_tokens,
                "bytes_per_token": {name: row.bytes_per_token(name) for name in row.num_tokens},
            }
            for row in rows
        },
    }
    paths.write_text(paths.join(folder, "eval.svg"), compression.picture(rows))
    paths.write_json(paths.join(folder, "eval.json"), result)
    return result


def token_counter(encoding: Any) -> Any:
    """Return a function text -> number of tokens, which takes names of special tokens as ordinary text."""
    return lambda text: len(encoding.encode_ordinary(text))


def texts_of(args: Args) -> dict[str, str]:
    """Return the texts to measure by name: held-out documents, the package's samples, the given files."""
    from raychat.data import corpus, reading
    from raychat.evals import compression

    texts: dict[str, str] = {}
    if args.data:
        _, val = corpus.split(corpus.shards(args.data, args.cluster.storage(), args.num_shards), args.num_val)
        documents: list[str] = []
        for block in reading.blocks(val):
            documents += reading.texts(block).to_pylist()
            if sum(map(len, documents)) >= args.max_chars:
                break
        texts["validation"] = "\n\n".join(documents)
    texts |= compression.samples()
    for path in args.files:
        texts[os.path.basename(path)] = paths.read_bytes(path).decode("utf-8", errors="replace")
    return {name: text[: args.max_chars] for name, text in texts.items()}


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args))

"""Byte-level byte-pair encoding in Rust."""

def count(texts: list[str], pattern: str) -> dict[bytes, int]:
    """Count the words that the split pattern cuts the texts into: word (UTF-8 bytes) -> occurrences.

    Parallel over texts, without the GIL. Raises ValueError for a pattern that does not compile or that gives up on a text.
    """

def train(counts: dict[bytes, int], vocab_size: int) -> list[bytes]:
    """Learn byte-pair merges from counted words and return the tokens in the order of their ids.

    The first 256 tokens are the single bytes; token 256 + k is what the k-th merge makes. The most frequent pair is merged
    first, of equally frequent ones the pair with the smaller ids. Ends early when no pair is left. Runs without the GIL.
    Raises ValueError when vocab_size is below 256 or a count is negative.
    """

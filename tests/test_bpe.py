"""The Rust crate against the regex module (words), rustbpe (merges), tiktoken (ids) and slow references."""

import io
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import raychat_bpe
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from raychat.tokenizer import SPLIT_PATTERN

# Characters assigned in every recent version of Unicode: Python, the regex module and Rust use different versions.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
BYTES = [bytes([byte]) for byte in range(256)]
SAMPLE = (
    "It's the tokenizer's job: they'll SPLIT 12345 words, don't they?  Yes, WE'VE seen 3.14 of them!\n\n"
    "\tnaïve café — Straße, 猫が好き, Привет мир, שלום, नमस्ते, 👩‍👩‍👧 \u200b\u00a0x\r\n  end  \n"
) * 3

MAGIC = b"raychat-counts-1\n"


def write(words: dict[bytes, int]) -> bytes:
    """Write sorted counts (tokenizer/src/counts.rs says how), without sharing bytes between words."""

    def number(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + number(n // 128)

    body = (number(0) + number(len(word)) + word + number(n) for word, n in sorted(words.items()))
    return MAGIC + b"".join(body) + len(words).to_bytes(8, "little")


def read(data: bytes) -> dict[bytes, int]:
    """Read sorted counts."""
    assert data.startswith(MAGIC)
    body = io.BytesIO(data[len(MAGIC) : -8])

    def number() -> int:
        byte = body.read(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * number()

    words: dict[bytes, int] = {}
    word = b""
    for _ in range(int.from_bytes(data[-8:], "little")):
        word = word[: number()] + body.read(number())
        words[word] = number()
    assert not body.read()
    return words


def count(texts: Any, pattern: str = SPLIT_PATTERN, num_threads: int | None = None) -> dict[bytes, int]:
    counts = raychat_bpe.Counts(texts, pattern, num_threads)
    words = read(counts.to_sorted()[0])
    assert len(words) == len(counts)
    return words


def train(words: dict[bytes, int], vocab_size: int) -> list[bytes]:
    return raychat_bpe.train(raychat_bpe.Counts.from_sorted([write(words)]), vocab_size)


def slow_train(counts: dict[bytes, int], vocab_size: int) -> list[bytes]:
    """Byte-pair encoding by its definition: count all pairs again before every merge."""
    words = [([bytes([b]) for b in word], n) for word, n in counts.items()]
    ids = {token: i for i, token in enumerate(BYTES)}
    while len(ids) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words:
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        pairs = +pairs
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        ids[best[0] + best[1]] = len(ids)
        words = [(slow_merge(word, best), n) for word, n in words]
    return list(ids)


def slow_merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    i = 0
    while i < len(word):
        both = tuple(word[i : i + 2]) == pair
        out.append(pair[0] + pair[1] if both else word[i])
        i += 2 if both else 1
    return out


@given(st.lists(st.text(ASSIGNED, max_size=60), max_size=8))
def test_count_equals_regex(texts: list[str]) -> None:
    expected = Counter(word.encode() for text in texts for word in regex.findall(SPLIT_PATTERN, text))
    assert count(texts) == expected


def test_count_of_parts_adds_up() -> None:
    texts = [SAMPLE[i:] for i in range(20)]
    whole = Counter(count(texts))
    parts = Counter(count(texts[:7])) + Counter(count(texts[7:]))
    assert whole == parts


def test_count_with_another_pattern() -> None:
    assert count(["ab  ab c"], r"\w+") == {b"ab": 2, b"c": 1}


def test_count_does_not_depend_on_threads() -> None:
    texts = [SAMPLE[i:] for i in range(50)]
    counts = [count(texts, num_threads=num_threads) for num_threads in (None, 1, 2, 5)]
    assert counts[0] == counts[1] == counts[2] == counts[3]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_arrow_columns_are_texts(kind: pa.DataType) -> None:
    texts = ["one two", "", "three猫 four five six seven", "x" * 100]
    expected = count(texts)
    array = pa.array(["cut", *texts, None], kind)[1:]
    assert count(array) == expected
    assert count(pa.chunked_array([array[:2], array[2:]])) == expected


def test_arrow_column_that_is_no_text_is_a_value_error() -> None:
    for column in (pa.array([1, 2]), pa.table({"text": ["a"]}), pa.array(["a"]).dictionary_encode()):
        with pytest.raises(ValueError, match="expected strings"):
            count(column)


def test_bad_pattern_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        count(["text"], "(")


WORDS = st.dictionaries(st.binary(max_size=20), st.integers(1, 2**40), max_size=30)


@given(WORDS)
def test_sorted_counts_come_back(words: dict[bytes, int]) -> None:
    assert read(raychat_bpe.Counts.from_sorted([write(words)]).to_sorted()[0]) == words


@given(st.lists(WORDS, max_size=5), st.integers(1, 4), st.integers(1, 2**20))
def test_sorted_counts_merge_to_their_sum(counts: list[dict[bytes, int]], num_parts: int, min_count: int) -> None:
    total: Counter[bytes] = sum(map(Counter, counts), Counter())
    in_parts = [raychat_bpe.Counts.from_sorted([write(words)]).to_sorted(num_parts) for words in counts]
    merged: dict[bytes, int] = {}
    cut_words = cut_occurrences = 0
    for part in range(num_parts):
        data, words, occurrences = raychat_bpe.merge([parts[part] for parts in in_parts], min_count)
        merged |= read(data)
        cut_words, cut_occurrences = cut_words + words, cut_occurrences + occurrences
    assert merged == {word: n for word, n in total.items() if n >= min_count}
    assert cut_words == len(total) - len(merged)
    assert cut_occurrences == sum(total.values()) - sum(merged.values())


def test_broken_sorted_counts_are_a_value_error() -> None:
    data = write({b"ab": 1, b"abc": 300})
    for broken in (b"", b"other", data[:-1], data + b"x"):
        for read_broken in (raychat_bpe.merge, raychat_bpe.Counts.from_sorted):
            with pytest.raises(ValueError, match="no word counts"):
                read_broken([broken])


@settings(deadline=None)
@given(st.dictionaries(st.text("ab ", min_size=1, max_size=12).map(str.encode), st.integers(0, 5), max_size=12))
def test_merges_equal_slow_reference(counts: dict[bytes, int]) -> None:
    assert train(counts, 256 + 12) == slow_train(counts, 256 + 12)


def test_merges_do_not_depend_on_order_of_words() -> None:
    words = [write({word: n}) for word, n in count([SAMPLE]).items()]
    expected = raychat_bpe.train(raychat_bpe.Counts.from_sorted(words), 400)
    for seed in range(3):
        random.Random(seed).shuffle(words)
        assert raychat_bpe.train(raychat_bpe.Counts.from_sorted(words), 400) == expected


def test_counts_beyond_32_bits() -> None:
    assert train({b"ab": 2**33, b"cd": 2**33 + 1}, 258)[256:] == [b"cd", b"ab"]


@pytest.mark.parametrize(
    "counts, vocab_size, message",
    [({}, 255, "at least 256"), ({b"abc": 2**62}, 300, "2\\^63")],
)
def test_wrong_training_input_is_a_value_error(counts: dict[bytes, int], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(counts, vocab_size)


@pytest.mark.parametrize("name, vocab_size", [("tinyshakespeare/input.txt", 4096), ("wikitext2/valid.txt", 20000)])
def test_merges_equal_rustbpe(shared_data: Path, name: str, vocab_size: int) -> None:
    rustbpe = pytest.importorskip("rustbpe")
    texts = (shared_data / name).read_text(encoding="utf-8").split("\n\n")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    expected = [bytes(token) for token, _ in sorted(reference.get_mergeable_ranks(), key=lambda item: item[1])]
    assert raychat_bpe.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), vocab_size) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abé 1\n'sS", max_size=40), min_size=1, max_size=5), st.integers(256, 290))
def test_merges_equal_rustbpe_on_any_text(texts: list[str], vocab_size: int) -> None:
    rustbpe = pytest.importorskip("rustbpe")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    expected = [bytes(token) for token, _ in sorted(reference.get_mergeable_ranks(), key=lambda item: item[1])]
    assert raychat_bpe.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), vocab_size) == expected


def small_ranks(seed: int) -> dict[bytes, int]:
    """Bytes and random joins of earlier tokens, with ids in random order."""
    rng = random.Random(seed)
    tokens = list(BYTES)
    for _ in range(200):
        token = rng.choice(tokens[97:123] + tokens[256:]) + rng.choice(tokens[97:123] + tokens[256:])
        if token not in tokens:
            tokens.append(token)
    ids = rng.sample(range(70_000), len(tokens))
    return dict(zip(tokens, ids, strict=True))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 5), text=st.text("abcdefgh", max_size=300))
def test_ids_equal_tiktoken_for_any_ranks(seed: int, text: str) -> None:
    ranks = small_ranks(seed)
    reference = tiktoken.Encoding("r", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert raychat_bpe.Encoder(ranks, {}, SPLIT_PATTERN).encode(text) == reference.encode_ordinary(text)


def test_wrong_ranks_are_a_value_error() -> None:
    ranks = {token: i for i, token in enumerate(BYTES)}
    cases = [(dict(list(ranks.items())[1:]), "byte 0"), (ranks | {b"": 300}, "empty"), (ranks | {b"ab": 7}, "twice")]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            raychat_bpe.Encoder(wrong, {}, SPLIT_PATTERN)
    with pytest.raises(ValueError, match="no special token"):
        raychat_bpe.Encoder(ranks, {}, SPLIT_PATTERN).encode_batch(["a"], "<|bos|>")

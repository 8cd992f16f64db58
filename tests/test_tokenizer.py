"""The tokenizer against rustbpe (merges), tiktoken (ids) and a slow reference."""

import functools
import itertools
import json
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import raychat_bpe
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

# Characters that every Unicode version of the last years knows: Python's, the regex module's and Rust's differ.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
BYTES = [bytes([byte]) for byte in range(256)]
SAMPLE = (
    "It's the tokenizer's job: they'll SPLIT 12345 words, don't they?  Yes, WE'VE seen 3.14 of them!\n\n"
    "\tnaïve café — Straße, 猫が好き, Привет мир, שלום, नमस्ते, 👩‍👩‍👧 \u200b\u00a0x\r\n  end  \n"
) * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(raychat_bpe.count([SAMPLE], SPLIT_PATTERN), 256 + 120 + len(SPECIAL_TOKENS))


def slow_train(counts: dict[bytes, int], vocab_size: int) -> list[bytes]:
    """Byte-pair encoding as the paper tells it: count all pairs anew before every merge."""
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


# ------------------------------------------------------------------------------------------------------ counting


@given(st.lists(st.text(ASSIGNED, max_size=60), max_size=8))
def test_count_equals_regex(texts: list[str]) -> None:
    expected = Counter(word.encode() for text in texts for word in regex.findall(SPLIT_PATTERN, text))
    assert raychat_bpe.count(texts, SPLIT_PATTERN) == expected


def test_count_of_pieces_adds_up() -> None:
    texts = [SAMPLE[i:] for i in range(20)]
    whole = Counter(raychat_bpe.count(texts, SPLIT_PATTERN))
    parts = Counter(raychat_bpe.count(texts[:7], SPLIT_PATTERN)) + Counter(raychat_bpe.count(texts[7:], SPLIT_PATTERN))
    assert whole == parts


def test_count_with_another_pattern() -> None:
    assert raychat_bpe.count(["ab  ab c"], r"\w+") == {b"ab": 2, b"c": 1}


def test_count_does_not_depend_on_threads() -> None:
    texts = [SAMPLE[i:] for i in range(50)]
    counts = [raychat_bpe.count(texts, SPLIT_PATTERN, num_threads) for num_threads in (None, 1, 2, 5)]
    assert counts[0] == counts[1] == counts[2] == counts[3]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_arrow_columns_are_texts(kind: pa.DataType) -> None:
    texts = ["one two", "", "three猫 four five six seven", "x" * 100]
    expected = raychat_bpe.count(texts, SPLIT_PATTERN)
    array = pa.array(["cut", *texts, None], kind)[1:]
    assert raychat_bpe.count(array, SPLIT_PATTERN) == expected
    assert raychat_bpe.count(pa.chunked_array([array[:2], array[2:]]), SPLIT_PATTERN) == expected


def test_arrow_column_that_is_no_text_is_a_value_error() -> None:
    for column in (pa.array([1, 2]), pa.table({"text": ["a"]}), pa.array(["a"]).dictionary_encode()):
        with pytest.raises(ValueError, match="expected strings"):
            raychat_bpe.count(column, SPLIT_PATTERN)


def test_bad_pattern_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        raychat_bpe.count(["text"], "(")


WORDS = st.dictionaries(st.binary(max_size=20), st.integers(1, 2**40), max_size=30)


@given(st.lists(WORDS, max_size=5), st.integers(1, 4), st.integers(1, 2**20))
def test_sorted_counts_merge_to_their_sum(parts: list[dict[bytes, int]], num_parts: int, min_count: int) -> None:
    total: Counter[bytes] = sum(map(Counter, parts), Counter())
    forms = [raychat_bpe.Counts.from_dict(part).to_sorted(num_parts) for part in parts]
    merged: dict[bytes, int] = {}
    cut_words = cut_occurrences = 0
    for of_part in range(num_parts):
        form, words, occurrences = raychat_bpe.merge([form[of_part] for form in forms], min_count)
        merged |= raychat_bpe.Counts.from_sorted([form]).to_dict()
        cut_words, cut_occurrences = cut_words + words, cut_occurrences + occurrences
    assert merged == {word: n for word, n in total.items() if n >= min_count}
    assert cut_words == len(total) - len(merged)
    assert cut_occurrences == sum(total.values()) - sum(merged.values())


def test_broken_sorted_counts_are_a_value_error() -> None:
    (form,) = raychat_bpe.Counts.from_dict({b"ab": 1, b"abc": 300}).to_sorted()
    for broken in (b"", b"other", form[:-1], form + b"x"):
        with pytest.raises(ValueError, match="no word counts"):
            raychat_bpe.merge([broken])


# ------------------------------------------------------------------------------------------------------ training


@settings(deadline=None)
@given(st.dictionaries(st.text("ab ", min_size=1, max_size=12).map(str.encode), st.integers(0, 5), max_size=12))
def test_merges_equal_slow_reference(counts: dict[bytes, int]) -> None:
    assert raychat_bpe.train(counts, 256 + 12) == slow_train(counts, 256 + 12)


def test_merges_do_not_depend_on_order_of_words() -> None:
    counts = list(raychat_bpe.count([SAMPLE], SPLIT_PATTERN).items())
    expected = raychat_bpe.train(dict(counts), 400)
    for seed in range(3):
        random.Random(seed).shuffle(counts)
        assert raychat_bpe.train(dict(counts), 400) == expected


def test_counts_beyond_32_bits() -> None:
    assert raychat_bpe.train({b"ab": 2**33, b"cd": 2**33 + 1}, 258)[256:] == [b"cd", b"ab"]


@pytest.mark.parametrize(
    "counts, vocab_size, message",
    [({}, 255, "at least 256"), ({b"ab": -1}, 300, "negative"), ({b"abc": 2**62}, 300, "2\\^63")],
)
def test_wrong_training_input_is_a_value_error(counts: dict[bytes, int], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raychat_bpe.train(counts, vocab_size)


@pytest.mark.parametrize("name, vocab_size", [("tinyshakespeare/input.txt", 4096), ("wikitext2/valid.txt", 20000)])
def test_merges_equal_rustbpe(shared_data: Path, name: str, vocab_size: int) -> None:
    rustbpe = pytest.importorskip("rustbpe")
    texts = (shared_data / name).read_text(encoding="utf-8").split("\n\n")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    expected = [bytes(token) for token, _ in sorted(reference.get_mergeable_ranks(), key=lambda item: item[1])]
    assert raychat_bpe.train(raychat_bpe.count(texts, SPLIT_PATTERN), vocab_size) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abé 1\n'sS", max_size=40), min_size=1, max_size=5), st.integers(256, 290))
def test_merges_equal_rustbpe_on_any_text(texts: list[str], vocab_size: int) -> None:
    rustbpe = pytest.importorskip("rustbpe")
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    expected = [bytes(token) for token, _ in sorted(reference.get_mergeable_ranks(), key=lambda item: item[1])]
    assert raychat_bpe.train(raychat_bpe.count(texts, SPLIT_PATTERN), vocab_size) == expected


# ------------------------------------------------------------------------------------------------------ encoding

# What is easily got wrong: every kind of white space, marks, joiners, other scripts' letters and digits, contractions
# in any case, characters beside the surrogates, unassigned ones, NUL.
TRICKY = (
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u180e\u200b\ufeff"
    "'sSdDmMtTlLvVeErRſKﬁ’.,!_-aéñß猫नमте\u0301\u093f\u200d\u20e312٣½Ⅷ²\U0001d7d9🎉\U0001f468"
    "\ud7ff\ue000\ufffe\uffff\u0378\U0003fffd\U0010ffff\0\x7f\x80"
)


def small_ranks(seed: int) -> dict[bytes, int]:
    """Bytes and random joins of tokens before them, in an order of ids in which they were not learned."""
    rng = random.Random(seed)
    tokens = list(BYTES)
    for _ in range(200):
        token = rng.choice(tokens[97:123] + tokens[256:]) + rng.choice(tokens[97:123] + tokens[256:])
        if token not in tokens:
            tokens.append(token)
    ids = rng.sample(range(70_000), len(tokens))
    return dict(zip(tokens, ids, strict=True))


@settings(max_examples=300, deadline=None)
@given(text=st.text(TRICKY, max_size=60))
def test_ids_equal_tiktoken_on_tricky_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference_encoding(tokenizer).encode_ordinary(text)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 5), text=st.text("abcdefgh", max_size=300))
def test_ids_equal_tiktoken_for_any_ranks(seed: int, text: str) -> None:
    ranks = small_ranks(seed)
    reference = tiktoken.Encoding("r", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert raychat_bpe.Encoder(ranks, {}, SPLIT_PATTERN).encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", "ab", "abc", " ", "\n", " \n", "é", "猫", "\u0301", "!", "1", "'s", "\0"])
def test_long_runs_equal_tiktoken(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * 2000
    assert tokenizer.encode(text) == reference_encoding(tokenizer).encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", "e ", " ", "\n ", "猫", "'", "th"])
def test_a_megabyte_of_one_thing_is_no_more_work_than_its_parts(unit: str) -> None:
    """Quadratic time would take hours here; the limit is generous and no measurement."""
    tokenizer = Tokenizer.train(raychat_bpe.count([SAMPLE + unit * 3000], SPLIT_PATTERN), 400)
    text = unit * (1_000_000 // len(unit.encode()))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_does_not_depend_on_threads_nor_on_what_was_encoded_before(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(SAMPLE + TRICKY, k=rng.randrange(200))) for _ in range(500)]
    expected = [reference_encoding(tokenizer).encode_ordinary(text) for text in texts]
    for num_threads in (1, 2, 3):
        ids, offsets = tokenizer.encode_batch(texts, num_threads=num_threads)
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected


def test_arrow_column_is_encoded_like_a_list(tokenizer: Tokenizer) -> None:
    texts = [SAMPLE, "", "one"]
    for column in (pa.array(texts), pa.chunked_array([texts[:1], texts[1:]])):
        got, expected = tokenizer.encode_batch(column, bos=True), tokenizer.encode_batch(texts, bos=True)
        assert [part.tolist() for part in got] == [part.tolist() for part in expected]


def test_wrong_ranks_are_a_value_error() -> None:
    ranks = {token: i for i, token in enumerate(BYTES)}
    cases = [(dict(list(ranks.items())[1:]), "byte 0"), (ranks | {b"": 300}, "empty"), (ranks | {b"ab": 7}, "twice")]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            raychat_bpe.Encoder(wrong, {}, SPLIT_PATTERN)
    with pytest.raises(ValueError, match="no special token"):
        raychat_bpe.Encoder(ranks, {}, SPLIT_PATTERN).encode_batch(["a"], "<|bos|>")


# ------------------------------------------------------------------------------------------------------ Tokenizer


@functools.cache
def reference_encoding(tokenizer: Tokenizer) -> tiktoken.Encoding:
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    return tiktoken.Encoding("reference", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(), st.text("It's WE'LL 12\r\n \t\u00a0éñ猫क्🎉_.!", max_size=80)))
def test_ids_equal_tiktoken_and_decode_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference_encoding(tokenizer).encode_ordinary(text)
    assert tokenizer.decode(ids) == text


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [SAMPLE, "", "one", "<|bos|>", SAMPLE[5:40]]
    ids, offsets = tokenizer.encode_batch(texts)
    assert ids.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [*map(tokenizer.encode, texts)]


def test_batch_with_bos(tokenizer: Tokenizer) -> None:
    ids, offsets = tokenizer.encode_batch(["", "one"], bos=True)
    assert ids.tolist() == [tokenizer.bos, tokenizer.bos, *tokenizer.encode("one")]
    assert offsets.tolist() == [0, 1, len(ids)]
    assert [len(part) for part in tokenizer.encode_batch([])] == [0, 1]


def test_large_vocabulary_gives_uint32() -> None:
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    large = Tokenizer(BYTES + pairs)
    assert large.encode_batch(["ab"])[0].dtype == np.uint32


def test_special_tokens_take_the_last_ids(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special.values()) == list(range(tokenizer.vocab_size - 9, tokenizer.vocab_size))
    assert tokenizer.bos == tokenizer.special["<|bos|>"]


def test_special_tokens_in_text_are_ordinary_text(tokenizer: Tokenizer) -> None:
    text = "a<|bos|>b<|assistant_end|>"
    assert max(tokenizer.encode(text)) < tokenizer.bos
    assert max(tokenizer.encode_batch([text])[0]) < tokenizer.bos
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_names_special_tokens_and_replaces_broken_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.bos, 0xC3, 97]) == "<|bos|>\ufffda"
    assert tokenizer.decode_bytes([0xC3]) == b"\xc3"


def test_id_outside_vocabulary_is_an_error(tokenizer: Tokenizer) -> None:
    for i in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([i])


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.encode(SAMPLE)].sum() == len(SAMPLE.encode())
    assert (lengths[tokenizer.bos :] == 0).all()


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    text = "a\ud800b"
    assert tokenizer.decode(tokenizer.encode(text)) == "a\ufffdb"
    assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode(text)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path))
    again = Tokenizer.load(str(tmp_path))
    assert (again.tokens, again.specials, again.pattern) == (tokenizer.tokens, tokenizer.specials, tokenizer.pattern)
    assert again.fingerprint == tokenizer.fingerprint


def test_pickle(tokenizer: Tokenizer) -> None:
    tokenizer.encode("warm up")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(SAMPLE) == tokenizer.encode(SAMPLE)


def test_tiktoken_export_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    exported = tokenizer.to_tiktoken()
    assert exported.encode_ordinary(SAMPLE) == tokenizer.encode(SAMPLE)
    assert exported.encode("<|bos|>", allowed_special="all") == [tokenizer.bos]


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(ASSIGNED), st.text("It's WE'LL 12\r\n \t\u00a0éñ猫क्🎉_.!", max_size=80)))
def test_huggingface_export_gives_the_same_ids(tokenizer: Tokenizer, text: str) -> None:
    exported = huggingface(tokenizer)
    exported.encode_special_tokens = True  # as ordinary text
    assert exported.encode(text).ids == tokenizer.encode(text)
    assert exported.decode(tokenizer.encode(text)) == text


@functools.cache
def huggingface(tokenizer: Tokenizer) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_huggingface()))


def test_huggingface_export_has_the_special_tokens(tokenizer: Tokenizer) -> None:
    exported = huggingface(tokenizer)
    exported.encode_special_tokens = False
    assert exported.get_vocab_size() == tokenizer.vocab_size
    assert exported.encode("a<|bos|>").ids == [97, tokenizer.bos]


def test_fingerprint_tells_tokenizers_apart(tokenizer: Tokenizer) -> None:
    others = [
        Tokenizer(tokenizer.tokens[:-1]),
        Tokenizer(tokenizer.tokens, SPECIAL_TOKENS[:-1]),
        Tokenizer(tokenizer.tokens, pattern=r"\w+|\W+"),
    ]
    assert len({t.fingerprint for t in [tokenizer, *others]}) == 4


def test_foreign_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tok_train"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {}}))
    with pytest.raises(ValueError, match="not a tokenizer of the format"):
        Tokenizer.load(str(tmp_path))


def test_too_small_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 265"):
        Tokenizer.train({b"ab": 1}, 264)


def test_wrong_vocabularies_are_refused() -> None:
    for tokens, specials in [
        (BYTES[1:], SPECIAL_TOKENS),
        ([*BYTES, b"a"], SPECIAL_TOKENS),
        (BYTES, ("<|a|>", "<|a|>")),
    ]:
        with pytest.raises(ValueError):
            Tokenizer(tokens, specials)

"""The tokenizer against rustbpe (merges), tiktoken (ids) and a slow reference."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
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


def test_bad_pattern_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        raychat_bpe.count(["text"], "(")


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


# ------------------------------------------------------------------------------------------------------ Tokenizer


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

"""The tokenizer against tiktoken."""

import functools
import itertools
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import raychat_bpe
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bpe import BYTES, SAMPLE

from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

# Characters that are easy to get wrong: every kind of white space, marks, joiners, letters and digits of other scripts,
# contractions in any case, neighbours of the surrogates, unassigned characters, NUL.
TRICKY = (
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u180e\u200b\ufeff"
    "'sSdDmMtTlLvVeErRſKﬁ’.,!_-aéñß猫नमте\u0301\u093f\u200d\u20e312٣½Ⅷ²\U0001d7d9🎉\U0001f468"
    "\ud7ff\ue000\ufffe\uffff\u0378\U0003fffd\U0010ffff\0\x7f\x80"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(raychat_bpe.Counts([SAMPLE], SPLIT_PATTERN), 256 + 120 + len(SPECIAL_TOKENS))


@functools.cache
def reference_encoding(tokenizer: Tokenizer) -> tiktoken.Encoding:
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    return tiktoken.Encoding("reference", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


@settings(max_examples=300, deadline=None)
@given(text=st.text(TRICKY, max_size=60))
def test_ids_equal_tiktoken_on_tricky_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference_encoding(tokenizer).encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", "ab", "abc", " ", "\n", " \n", "é", "猫", "\u0301", "!", "1", "'s", "\0"])
def test_long_runs_equal_tiktoken(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * 2000
    assert tokenizer.encode(text) == reference_encoding(tokenizer).encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", "e ", " ", "\n ", "猫", "'", "th"])
def test_a_megabyte_of_one_unit_takes_no_quadratic_time(unit: str) -> None:
    """Quadratic time would exceed the test's time limit by hours."""
    tokenizer = Tokenizer.train(raychat_bpe.Counts([SAMPLE + unit * 3000], SPLIT_PATTERN), 400)
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
        Tokenizer.train(raychat_bpe.Counts(["ab"], SPLIT_PATTERN), 264)


def test_wrong_vocabularies_are_refused() -> None:
    for tokens, specials in [
        ([*BYTES, b""], SPECIAL_TOKENS),
        ([*BYTES, b"a"], SPECIAL_TOKENS),
        (BYTES, ("<|a|>", "<|a|>")),
    ]:
        with pytest.raises(ValueError):
            Tokenizer(tokens, specials)


def test_characters_are_tokens_in_their_order() -> None:
    tokenizer = Tokenizer.of_characters("hello, wörld\n")
    assert tokenizer.tokens == [c.encode() for c in "\n ,dehlorwö"]
    assert (tokenizer.vocab_size, tokenizer.bos) == (12, 11)
    assert tokenizer.encode("öl\nh") == [10, 6, 0, 5]
    assert tokenizer.decode([10, 6, 0, 5]) == "öl\nh"
    ids, offsets = tokenizer.encode_batch(["dö", "", "e"], bos=True)
    assert (ids.tolist(), offsets.tolist()) == ([11, 3, 10, 11, 11, 4], [0, 3, 4, 6])
    assert ids.dtype == tokenizer.dtype


def test_characters_that_were_not_there_are_refused(tmp_path: Path) -> None:
    Tokenizer.of_characters("abc").save(str(tmp_path))
    tokenizer = Tokenizer.load(str(tmp_path))
    for text in ("abx", "é"):
        with pytest.raises(ValueError, match="expected only characters of the 3"):
            tokenizer.encode(text)
        with pytest.raises(ValueError, match="expected only characters of the 3"):
            tokenizer.encode_batch(["abc", text])


def test_bytes_may_have_any_ids() -> None:
    """GPT-2's single bytes are in another order."""
    tokens = [*BYTES[::-1], b"ab", b"abc"]
    assert Tokenizer(tokens).encode("abcab~") == [257, 256, 255 - ord("~")]

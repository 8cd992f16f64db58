"""Tokenizers as tokenizer.json, against Hugging Face's tokenizers and transformers."""

import functools
import json
from typing import Any

import pytest
import raychat_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bpe import ASSIGNED, BYTES, SAMPLE

from raychat.huggingface import GPT2_PATTERN, from_json, to_json
from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(raychat_bpe.Counts([SAMPLE], SPLIT_PATTERN), 256 + 120 + len(SPECIAL_TOKENS))


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
    return tokenizers.Tokenizer.from_str(json.dumps(to_json(tokenizer)))


def test_huggingface_export_has_the_special_tokens(tokenizer: Tokenizer) -> None:
    exported = huggingface(tokenizer)
    exported.encode_special_tokens = False
    assert exported.get_vocab_size() == tokenizer.vocab_size
    assert exported.encode("a<|bos|>").ids == [97, tokenizer.bos]


def test_read_back_it_is_the_same(tokenizer: Tokenizer) -> None:
    assert from_json(json.loads(json.dumps(to_json(tokenizer)))).fingerprint == tokenizer.fingerprint


def gpt2_like() -> Any:
    """A small tokenizer that the `tokenizers` library has trained and written, as GPT-2's is."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([SAMPLE] * 3, vocab_size=400, min_frequency=2)
    made.add_special_tokens(["<|endoftext|>"])
    return made


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(ASSIGNED), st.text("It's WE'LL 123\r\n \t\u00a0éñ猫क्🎉_.!", max_size=80)))
def test_gpt2s_form_is_read(text: str) -> None:
    theirs, ours = read_gpt2_like()
    assert ours.encode(text) == theirs.encode(text).ids


@functools.cache
def read_gpt2_like() -> tuple[Any, Tokenizer]:
    theirs = gpt2_like()
    ours = from_json(json.loads(theirs._tokenizer.to_str()))
    assert (ours.pattern, ours.specials, ours.bos) == (GPT2_PATTERN, ("<|endoftext|>",), theirs.get_vocab_size() - 1)
    return theirs, ours


@pytest.mark.parametrize(
    "change, message",
    [
        ({"normalizer": {"type": "NFC"}}, "or a normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "splits text by"),
        ({"added_tokens": [{"content": "<|bos|>", "id": 5}]}, "ids that are missing"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
    ],
)
def test_other_forms_are_refused(tokenizer: Tokenizer, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(to_json(tokenizer) | change)


def test_merges_in_another_order_than_the_ids_are_refused(tokenizer: Tokenizer) -> None:
    data = to_json(tokenizer)
    data["model"]["merges"].reverse()
    with pytest.raises(ValueError, match="merges that are not in the order"):
        from_json(data)


def test_a_token_that_no_merge_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="not merged from two tokens"):
        to_json(Tokenizer([*BYTES, b"abc"]))

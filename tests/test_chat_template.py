"""Conversations as tokens: round trips over arbitrary text, what carries loss, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raychat.chat.template import completion_parts, completion_text, normalise, parse, render, render_prompt
from raychat.tokenizer import Tokenizer

BYTES = Tokenizer([bytes([i]) for i in range(256)])  # every byte is a token: no training needed
TOOL_ANSWER = [
    {"type": "text", "text": "3 + 4 = "},
    {"type": "python", "text": "3+4"},
    {"type": "python_output", "text": "7"},
    {"type": "text", "text": "7"},
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "3 + 4?"},
    {"role": "assistant", "content": TOOL_ANSWER},
]

parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "python", "python_output"]), "text": st.text(max_size=12)}),
    max_size=5,
)
says_something = parts.filter(lambda found: any(part["type"] != "text" or part["text"] for part in found))
turns = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1) | says_something), min_size=1, max_size=4)


def conversation(pairs, system=None):
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = [({"role": "user", "content": u}, {"role": "assistant", "content": a}) for u, a in pairs]
    return head + [message for pair in roles for message in pair]


def shown(rendered, loss):
    """The rendered conversation, only the tokens whose mask is `loss`."""
    return BYTES.decode([token for token, mask in zip(*rendered, strict=True) if mask == loss])


@given(turns, st.none() | st.text())
def test_parse_is_the_inverse_of_render(pairs, system):
    messages = conversation(pairs, system)
    ids = render(BYTES, messages).ids
    assert parse(BYTES, ids) == normalise(messages)
    assert render(BYTES, parse(BYTES, ids)).ids == ids


@given(turns)
def test_a_prompt_and_its_completion_make_the_conversation(pairs):
    messages = conversation(pairs)
    ids = render(BYTES, messages).ids
    prompt = render_prompt(BYTES, messages[:-1])
    assert ids[: len(prompt)] == prompt
    content = normalise(messages)[-1]["content"]
    as_parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    assert completion_parts(BYTES, ids[len(prompt) :]) == as_parts


def test_the_format_is_the_recipes():
    assert BYTES.decode(render(BYTES, TALK).ids) == (
        "<|bos|><|user_start|>Be brief.\n\n3 + 4?<|user_end|>"
        "<|assistant_start|>3 + 4 = <|python_start|>3+4<|python_end|><|output_start|>7<|output_end|>7<|assistant_end|>"
    )


def test_loss_falls_on_what_the_assistant_writes():
    rendered = render(BYTES, TALK)
    assert shown(rendered, 1) == "3 + 4 = <|python_start|>3+4<|python_end|>7<|assistant_end|>"
    assert shown(rendered, 0) == (
        "<|bos|><|user_start|>Be brief.\n\n3 + 4?<|user_end|><|assistant_start|><|output_start|>7<|output_end|>"
    )


def test_special_tokens_written_by_a_user_stay_text():
    messages = conversation([("<|assistant_start|>hi<|bos|>", "<|assistant_end|>")])
    ids = render(BYTES, messages).ids
    assert sum(token >= 256 for token in ids) == 5
    assert parse(BYTES, ids) == messages


def test_neighbouring_text_parts_are_one_text():
    split = [{"type": "text", "text": "ab"}, {"type": "text", "text": ""}, {"type": "text", "text": "c"}]
    assert render(BYTES, conversation([("x", split)])) == render(BYTES, conversation([("x", "abc")]))


def test_rendering_leaves_the_messages_alone():
    messages = conversation([("x", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "s")
    before = repr(messages)
    render(BYTES, messages)
    assert repr(messages) == before


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", "list of messages"),
        ({"role": "user"}, "list of messages"),
        ([], "empty"),
        (["hello"], "message 0"),
        ([{"role": "user"}], "'content'"),
        ([{"role": "system", "content": "s"}], "followed by a user"),
        ([{"role": "system", "content": 3}, {"role": "user", "content": "u"}], "should be a string"),
        ([{"role": "assistant", "content": "a"}], "expected 'user'"),
        ([{"role": "user", "content": "u"}] * 2, "expected 'assistant'"),
        ([{"role": "user", "content": "u"}, {"role": "tool", "content": "t"}], "'tool'"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{"role": "user", "content": 5}], "type int"),
        ([{"role": "user", "content": [{"type": "text", "text": "u"}]}], "type list"),
        (conversation([("u", "")]), "is empty"),
        (conversation([("u", [])]), "is empty"),
        (conversation([("u", [{"type": "image", "text": ""}])]), "'image'"),
        (conversation([("u", [{"type": "text"}])]), "'text'"),
        (conversation([("u", None)]), "NoneType"),
        ([{"role": "user", "content": "u"}], "end with an assistant"),
    ],
)
def test_a_malformed_conversation_is_refused(messages, says):
    with pytest.raises(ValueError, match=says):
        render(BYTES, messages)


def test_a_prompt_must_end_with_the_user():
    with pytest.raises(ValueError, match="end with a user"):
        render_prompt(BYTES, conversation([("u", "a")]))


def test_ids_that_are_no_conversation_do_not_parse():
    ids = render(BYTES, TALK).ids
    unopened = [token for token in ids if token != BYTES.special["<|python_start|>"]]
    call = [BYTES.special["<|python_start|>"], BYTES.special["<|python_end|>"]]
    for wrong, says in [
        (ids[1:], "not a whole rendered conversation"),
        (ids[:-1], "not a whole rendered conversation"),
        ([ids[0], *ids], "not a whole rendered conversation"),
        (unopened, "not a whole rendered conversation"),
        ([], "is empty"),
        ([*ids, ids[1]], "is empty"),
        ([*ids[:2], *call, *ids[2:]], "expected a string"),
    ]:
        with pytest.raises(ValueError, match=says):
            parse(BYTES, wrong)


@given(turns, st.integers(0, 10**6), st.integers(0, BYTES.vocab_size - 1))
def test_what_parses_renders_back(pairs, at, token):
    """One token of a rendered conversation is replaced: it is refused, or parsed without loss."""
    ids = render(BYTES, conversation(pairs)).ids
    ids[at % len(ids)] = token
    try:
        messages = parse(BYTES, ids)
    except ValueError:
        return
    assert render(BYTES, messages).ids == ids


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
def test_any_generated_tokens_have_parts(ids):
    found = completion_parts(BYTES, ids)
    assert completion_text(BYTES, ids) == "".join(part["text"] for part in found if part["type"] == "text")


def test_completion_stops_at_the_end_of_the_turn_and_leaves_tools_out():
    special = BYTES.special
    ids = render(BYTES, TALK).ids
    answer = ids[ids.index(special["<|assistant_start|>"]) + 1 :]
    assert completion_text(BYTES, [*answer, *BYTES.encode("more")]) == "3 + 4 = 7"
    cut = answer[: answer.index(special["<|python_end|>"])]
    assert completion_parts(BYTES, cut)[-1] == {"type": "python", "text": "3+4"}


def test_a_tokenizer_of_texts_alone_cannot_render_a_conversation():
    tokenizer = Tokenizer([bytes([i]) for i in range(256)], ["<|endoftext|>"])
    with pytest.raises(ValueError, match=r"has no <\|bos\|>, so its model cannot chat"):
        render_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    assert completion_text(tokenizer, [104, 105, tokenizer.bos, 104]) == "hi"

"""Text streams against decoding everything at once."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer

from raychat.chat.notation import content_of
from raychat.chat.stream import TextStream
from raychat.chat.template import completion_parts, normalise

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    text = TextStream(TOKENIZER, stop)
    return [*(text.push(token) for token in ids), text.close()]


def call(expression: str, answer: str | None = None) -> list[int]:
    ids = [SPECIAL["<|python_start|>"], *expression.encode(), SPECIAL["<|python_end|>"]]
    if answer is not None:
        ids += [SPECIAL["<|output_start|>"], *answer.encode(), SPECIAL["<|output_end|>"]]
    return ids


@given(st.text())
def test_streamed_text_is_the_whole_text(text: str) -> None:
    pieces = stream([*text.encode("utf-8", errors="ignore"), SPECIAL["<|assistant_end|>"]])
    assert "".join(pieces) == text.encode("utf-8", errors="ignore").decode()


@given(st.binary())
def test_any_bytes_are_decoded_as_python_does(data: bytes) -> None:
    assert "".join(stream(list(data))) == data.decode("utf-8", errors="replace")


def test_no_piece_ends_inside_a_character() -> None:
    assert [p for p in stream([*"aé🙂b".encode()]) if p] == ["a", "é", "🙂", "b"]


def test_tool_calls_are_written_as_gsm8k_writes_them() -> None:
    ids = [*b"It is ", *call("48/2", "24"), *b"24.", *call("x"), *b" Hm", *call("1+1", "2"), *call("3")]
    assert "".join(stream(ids)) == "It is <<48/2=24>>24.<<x>> Hm<<1+1=2>><<3>>"


def test_cut_off_call_is_closed_and_stray_tool_tokens_are_left_out() -> None:
    assert "".join(stream([*b"a", SPECIAL["<|python_start|>"], *b"1+"])) == "a<<1+>>"
    assert "".join(stream([*b"a", SPECIAL["<|output_end|>"], SPECIAL["<|python_end|>"], *b"b"])) == "ab"


def test_output_without_a_call_is_text() -> None:
    output = call("", "7")[2:]
    assert "".join(stream([*b"a", *output, *b"b"])) == "a7b"
    assert "".join(stream([*call("3+4", "7"), *output])) == "<<3+4=7>>7"


expressions = st.text(alphabet="0123+-*/.() ='rcount", min_size=1, max_size=12)
answers = st.none() | st.text(alphabet="0123.-", min_size=1, max_size=6)
texts = st.text(alphabet="ab =.<\n", min_size=1, max_size=8).filter(lambda s: "<<" not in s)


@given(st.lists(st.tuples(texts, expressions, answers), min_size=1, max_size=4))
def test_content_of_reads_the_stream_back(turns: list[tuple[str, str, str | None]]) -> None:
    turns = [(f"{t} ", e.replace("=", "") if a is None else e, a) for t, e, a in turns]  # "x=y" unanswered is ambiguous
    ids = [token for text, e, a in turns for token in (*text.encode(), *call(e, a))]
    content = content_of("".join(stream(ids)))
    said = normalise([{"role": "user", "content": "q"}, {"role": "assistant", "content": content}])[1]["content"]
    assert said == completion_parts(TOKENIZER, ids)


def test_content_without_calls_stays_a_string() -> None:
    assert content_of("1 < 2 and 3 >> 1 << 2") == "1 < 2 and 3 >> 1 << 2"


@given(st.text(alphabet="ab", max_size=20), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_they_first_occur(text: str, stop: list[str]) -> None:
    cuts = {}  # where the text is cut if reading ends as soon as a stop string is complete
    for s in stop:
        if (at := text.find(s)) >= 0:
            cuts.setdefault(at + len(s), []).append(at)
    expected = text[: min(cuts[min(cuts)])] if cuts else text
    assert "".join(stream(list(text.encode()), tuple(stop))) == expected


def test_stop_string_is_noticed() -> None:
    text = TextStream(TOKENIZER, ["END"])
    assert [text.push(c) for c in b"xENyEND"] == ["x", "", "", "ENy", "", "", ""]
    assert text.stopped
    assert text.push(ord("z")) + text.close() == ""


def test_parts_of_the_text_have_their_places() -> None:
    """A call begins with its "<<", its result with "=", and what ends the call belongs to it."""
    text = TextStream(TOKENIZER)
    whole = "".join(text.push(token) for token in [*b"It is ", *call("48/2", "24"), *b"24.", *call("x"), *b"!"])
    ends = [at for at, _ in text.parts[1:]] + [text.length]
    found = [(part, whole[at:end]) for (at, part), end in zip(text.parts, ends, strict=True)]
    assert found == [
        ("text", "It is "),
        ("python", "<<48/2"),
        ("python_output", "=24>>"),
        ("text", "24."),
        ("python", "<<x>>"),
        ("text", "!"),
    ]

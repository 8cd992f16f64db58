"""The pure functions of the chat page: Markdown, the reader of streams, model cards, what a request says."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_serve import END, START, service
from tiny import scripted_model
from tiny_server import http_server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http_server(service(scripted_model([[START, *b"Hi", END]]))) as url:
        yield url


@pytest.fixture(scope="module")
def script(browser: Any, url: str) -> Any:
    """Return a function that runs JavaScript with a module of the page as `m` and an argument as `x`."""
    page = browser.new_page()
    page.goto(url)

    def run(module: str, body: str, argument: Any = None) -> Any:
        return page.evaluate(f"async (x) => {{ const m = await import('/page/{module}.js'); {body} }}", argument)

    return run


HTML = "const box = document.createElement('div'); box.append(...m.markdown(x)); return box.innerHTML;"


@pytest.mark.parametrize(
    "text, html",
    [
        ("Hello", "<p>Hello</p>"),
        ("One\nline\n\nTwo", "<p>One<br>line</p><p>Two</p>"),
        ("**bold** *it* ~~no~~", "<p><strong>bold</strong> <em>it</em> <del>no</del></p>"),
        ("__bold__ _it_", "<p><strong>bold</strong> <em>it</em></p>"),
        ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
        ("2*3*4 and 2 * 3 * 4, snake_case_name, **", "<p>2*3*4 and 2 * 3 * 4, snake_case_name, **</p>"),
        ("`a*b*c` ``a", "<p><code>a*b*c</code> ``a</p>"),
        ("# A\n#### B #\n#no", "<h3>A</h3><h6>B</h6><p>#no</p>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("- a\n- b\n  - c\n\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("1. a\n\n   more\n2. b", "<ol><li>a<p>more</p></li><li>b</li></ol>"),
        ("The year\n1986. was good", "<p>The year<br>1986. was good</p>"),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("[a](javascript://x)", "<p>[a](javascript://x)</p>"),
        ("[a](data:text/html,x) ![b](x.png)", "<p>[a](data:text/html,x) ![b](x.png)</p>"),
        ('[a](https://x.org/"onclick=alert)', '<p><a href="https://x.org/&quot;onclick=alert" new>a</a></p>'),
        ("See https://x.org/a?b=1.", '<p>See <a href="https://x.org/a?b=1" new>https://x.org/a?b=1</a>.</p>'),
        (
            "| a | b |\n|---|--:|\n| 1 |",
            '<table><thead><tr><th>a</th><th class="right">b</th></tr></thead>'
            '<tbody><tr><td>1</td><td class="right"></td></tr></tbody></table>',
        ),
        ("a | b\nc", "<p>a | b<br>c</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markdown(script: Any, text: str, html: str) -> None:
    found = script("markdown", HTML, text).replace(' target="_blank" rel="noopener noreferrer"', " new")
    assert found.removeprefix('<div class="table" tabindex="0">').removesuffix("</div>") == html


def test_code_block_keeps_its_text_also_while_it_is_open(script: Any) -> None:
    box = "const box = document.createElement('div'); box.append(...m.markdown(x)); "
    for end in ("\n```", ""):
        text = "```html\n<b>*no*</b>\n\n  | a |" + end
        assert (
            script("markdown", box + "return box.querySelector('pre code').textContent", text)
            == "<b>*no*</b>\n\n  | a |"
        )
        assert script("markdown", box + "return box.querySelector('span').textContent", text) == "html"


@pytest.mark.parametrize(
    "text", ["*" * 20_000, "`" * 20_000, "[" * 20_000, "> " * 5_000, "- " * 5_000, "|-" * 5_000, "**a " * 5_000]
)
def test_markdown_of_hostile_text_is_quick(script: Any, text: str) -> None:
    """Neither deep recursion nor minutes: an exception or the test's own time limit would show it."""
    assert script("markdown", HTML, text)


PARTS = [
    {"type": "text", "text": "a = "},
    {"type": "python", "text": "<<6*7"},
    {"type": "python_output", "text": "=42>>"},
    {"type": "text", "text": "42, and <<1+1=2>> is text, \ufffc too"},
]
SHOWN = "const { text, chips } = m.shown(x); return [text, chips.map((c) => c.textContent)];"


def test_only_real_calls_become_chips(script: Any) -> None:
    assert script("answer", SHOWN, PARTS) == ["a = \ufffc42, and <<1+1=2>> is text,  too", ["6*7= 42"]]


def test_calls_that_are_not_over_or_had_no_result(script: Any) -> None:
    assert script("answer", SHOWN, PARTS[:2]) == ["a = \ufffc", ["6*7"]]
    assert script("answer", SHOWN, [{"type": "python", "text": "<<a>><<b"}, PARTS[2]]) == [
        "\ufffc\ufffc",
        ["a", "b= 42"],
    ]


READ = """
    async function* pieces() { for (const piece of x) yield piece; }
    const found = [];
    try {
        for await (const event of m.events(pieces())) found.push(event);
    } catch (error) {
        found.push(error.message);
    }
    return found;
"""
EVENTS = [{"a": "é\n\n🙂"}, {"b": [1]}]
STREAM = ": ping\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in EVENTS) + "data: [DONE]\n\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_stream_is_read_wherever_it_is_cut(script: Any, newline: str) -> None:
    stream = STREAM.replace("\n", newline)
    cuts = [[stream], list(stream), *([stream[:i], stream[i:]] for i in range(len(stream)))]
    assert script(
        "api", f"const all = []; for (x of x) all.push(await (async () => {{ {READ} }})()); return all;", cuts
    ) == [EVENTS for _ in cuts]


def test_stream_without_an_end_is_an_error(script: Any) -> None:
    assert script("api", READ, ['data: {"a": 1}\n\nda']) == [
        {"a": 1},
        "The connection was lost in the middle of the answer.",
    ]


def card(stage: str, step: int, latest: bool = True, run: str = "r") -> dict[str, Any]:
    name = f"{run}-{stage}" + ("" if latest else f"@{step}")
    return {"id": name, "run": run, "stage": stage, "step": step, "latest": latest}


CARDS = [
    card("base", 9),
    card("sft", 2, False),
    card("sft", 8),
    card("sft", 4, False),
    card("rl", 3),
    card("sft", 1, run="s"),
]


def test_cards_are_grouped_by_run_and_stage(script: Any) -> None:
    groups = script("models", "return m.grouped(x)", CARDS)
    assert [(g["run"], [(s["stage"], [c["step"] for c in s["cards"]]) for s in g["stages"]]) for g in groups] == [
        ("r", [("rl", [3]), ("sft", [8, 4, 2]), ("base", [9])]),
        ("s", [("sft", [1])]),
    ]
    plain = [{"id": "a", "run": None, "stage": None, "step": None, "latest": True}]
    assert script("models", "return m.grouped(x)", plain)[0]["stages"][0]["stage"] == "a"
    assert script("models", "return m.nameOf(x[0])", plain) == "a"


@pytest.mark.parametrize(
    "of, beside", [("r-rl", "r-sft"), ("r-sft", "r-sft@2"), ("r-sft@2", "r-sft@4"), ("s-sft", "r-base")]
)
def test_comparison_begins_with_the_stage_before_or_the_first_step(script: Any, of: str, beside: str) -> None:
    assert script("models", f"return m.counterpart(x.find((c) => c.id === '{of}'), x).id", CARDS) == beside


def exchange(question: str, *answers: str) -> dict[str, Any]:
    return {"question": question, "answers": [{"parts": [{"type": "text", "text": a}] if a else []} for a in answers]}


def test_messages_skip_questions_without_an_answer(script: Any) -> None:
    chat = {
        "system": "S",
        "exchanges": [exchange("1", "one"), exchange("2", ""), exchange("3", "three", "drei"), exchange("4")],
    }
    said = "return m.messagesFor(x, {}, 3, (a) => a.parts.map((p) => p.text).join('')).map((m) => m.content)"
    assert script("chats", said.format(0), chat) == ["S", "1", "one", "3", "three", "4"]
    assert script("chats", said.format(1), chat) == ["S", "1", "one", "3", "drei", "4"]

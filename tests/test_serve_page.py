"""The chat page in a real browser: Playwright drives Debian's Chromium."""

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_serve import END, REPO, SPECIAL, START, TOKENIZER, num_open, service, slow_service, wait_until
from tiny import scripted_model
from tiny_server import http_server

import raychat.serve.page
from raychat.engine.engine import Engine
from raychat.serve.answers import ModelCard
from raychat.serve.service import ChatService
from raychat.serve.settings import ServerSettings
from raychat.serve.types import ChatRequest, CompletionRequest

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright").expect
expect.set_options(timeout=60_000)  # a busy machine takes longer than Playwright's 5 s
WIDTHS = (1280, 390, 320)


class Several:
    """Some services behind one endpoint, the first one the default."""

    def __init__(self, *services: ChatService) -> None:
        self._services: dict[str, ChatService] = {}
        for one in services:
            self.add(one)

    def add(self, one: ChatService) -> None:
        self._services[one.card.id] = one

    async def cards(self) -> list[ModelCard]:
        return [service.card for service in self._services.values()]

    def stream(self, request: ChatRequest | CompletionRequest) -> Any:
        return self._services[request.model or next(iter(self._services))].stream(request)


def says(text: bytes, run: str = "tiny", stage: str = "sft", step: int = 9, latest: bool = True) -> ChatService:
    """A model that answers every question with a text, and continues every prompt that ends with its first byte."""
    model = scripted_model([[START, *text, END]], sequence_len=512)
    name = f"{run}-{stage}" if latest else f"{run}-{stage}@{step}"
    card = ModelCard(id=name, created=1, max_model_len=512, run=run, stage=stage, step=step, latest=latest)
    return ChatService(Engine(model, TOKENIZER, max_sequences=4), card)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A model that answers "Now: <<6*7=42>>é🙂. <script>" to every question."""
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    answer = [SPECIAL["<|output_end|>"], *"é🙂.\n<script>".encode(), END]
    with http_server(service(scripted_model([[START, *b"Now: ", *call], answer], sequence_len=512))) as url:
        yield url


@pytest.fixture(scope="module")
def family() -> Iterator[str]:
    """Models of several stages and steps; each answers with other letters."""
    first = says(b"abc", stage="rl")
    rest = [says(b"def"), says(b"ghi", step=4, latest=False), says(b"jkl", stage="base"), says(b"mno", run="other")]
    with http_server(Several(first, *rest)) as url:
        yield url


def ask(page: Any, question: str) -> None:
    """Send a question and wait until it is answered."""
    answered = page.locator(".numbers").count()
    page.fill("#input", question)
    page.keyboard.press("Enter")
    expect(page.locator(".numbers")).to_have_count(answered + 1)


def kept(page: Any) -> list[dict[str, Any]]:
    """Return the conversations that the browser keeps."""
    return page.evaluate(
        "Object.keys(localStorage).filter((k) => k.startsWith('raychat.chat.')).map((k) => JSON.parse(localStorage[k]))"
    )


def open_sidebar(page: Any) -> None:
    if page.locator("#show-sidebar").is_visible():
        page.click("#show-sidebar")


def test_page_is_this_servers_alone(url: str) -> None:
    """No file names another server, and the browser may not ask one."""
    folder = Path(raychat.serve.page.__file__).parent
    for path in folder.iterdir():
        if path.suffix in raychat.serve.page.SUFFIXES:
            answer = httpx.get(f"{url}/page/{path.name}")
            assert answer.text == path.read_text()
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert not re.search(r"(src|href)=\"(?!page/|#)|@import|url\(", answer.text)
    assert httpx.get(f"{url}/page/__init__.py").status_code == 404


def test_every_file_of_the_page_is_in_the_package() -> None:
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["raychat"]
    assert {f"**/*{suffix}" for suffix in raychat.serve.page.SUFFIXES} <= set(patterns)


@pytest.fixture(params=WIDTHS)
def sized(page: Any, request: Any) -> Any:
    page.set_viewport_size({"width": request.param, "height": 700})
    return page


def test_question_and_answer(sized: Any, url: str) -> None:
    sized.goto(url)
    expect(sized.locator(".picker")).to_have_text("tiny-sft")
    ask(sized, "What is 6 * 7? <img src=x>")
    expect(sized.locator(".bubble")).to_have_text("What is 6 * 7? <img src=x>")
    expect(sized.locator(".body")).to_contain_text("é🙂.<script>")
    assert sized.locator(".body script, .bubble img").count() == 0
    assert sized.locator(".chip").inner_text().split() == ["6*7", "=", "42"]
    expect(sized.locator(".numbers")).to_contain_text("31 tokens")
    expect(sized.locator("#input")).to_be_focused()
    expect(sized.locator("#announcer")).to_contain_text("tiny-sft: Now: ")


def test_context_is_counted(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "Hi")
    assert page.inner_text("#context") == f"{1 + 1 + 2 + 1 + 1 + 31} of 512 tokens of context"


def test_page_that_opens_with_a_question_asks_it(page: Any, url: str) -> None:
    page.goto(f"{url}/?q=Hello")
    expect(page.locator(".numbers")).to_be_visible()
    assert page.inner_text(".bubble") == "Hello"


def test_suggestion_is_asked(page: Any, url: str) -> None:
    page.goto(url)
    page.locator(".ideas button").first.click()
    expect(page.locator(".numbers")).to_be_visible()
    expect(page.locator(".welcome")).to_have_count(0)


def test_copy(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "Hi")
    page.click(".answer button[aria-label=Copy]")
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith("é🙂.\n<script>")


def test_stop_and_regenerate(sized: Any) -> None:
    slow = slow_service(0.02)
    with http_server(slow) as url:
        sized.goto(url)
        sized.fill("#input", "The alphabet, please")
        sized.keyboard.press("Enter")
        expect(sized.locator(".body")).to_contain_text("abcdef")
        assert num_open(slow) == 1
        sized.click("#send[aria-label=Stop]")
        expect(sized.locator(".numbers")).to_contain_text("stopped")
        assert wait_until(lambda: num_open(slow) == 0, timeout_s=5)
        expect(sized.locator("#send")).to_have_attribute("aria-label", "Send")
        sized.click(".again")
        expect(sized.locator(".numbers")).to_have_count(0)
        expect(sized.locator(".body")).to_contain_text("abcdef")
        sized.keyboard.press("Escape")
        expect(sized.locator(".numbers")).to_contain_text("stopped")
        assert sized.locator(".exchange").count() == 1


def start_answer(page: Any, question: str) -> None:
    """Send a question to a slow model and wait for the first words."""
    page.fill("#input", question)
    page.keyboard.press("Enter")
    expect(page.locator(".body").last).to_contain_text("abc")


def test_reload_keeps_what_there_is_of_an_answer(page: Any) -> None:
    with http_server(slow_service(0.02)) as url:
        page.goto(url)
        start_answer(page, "The alphabet, please")
        page.reload()
        page.click(".chat-title")
        expect(page.locator(".body")).to_contain_text("abc")
        expect(page.locator(".numbers")).to_contain_text("stopped")


def test_another_conversation_stops_the_answer(page: Any) -> None:
    slow = slow_service(0.02)
    with http_server(slow) as url:
        page.goto(url)
        start_answer(page, "First")
        page.keyboard.press("Control+Shift+O")
        expect(page.locator(".welcome")).to_be_visible()
        assert wait_until(lambda: num_open(slow) == 0)
        start_answer(page, "Second")
        page.click(".chat-title >> text=First")
        expect(page.locator(".bubble")).to_have_text("First")
        expect(page.locator(".body")).to_contain_text("abc")
        expect(page.locator("#send")).to_have_attribute("aria-label", "Send")


def test_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page: Any) -> None:
    slow = slow_service(0.02)
    with http_server(slow) as url:
        page.goto(url)
        start_answer(page, "First")
        page.fill("#input", "")
        page.click(".more")
        page.click("#menu >> text=Delete")
        expect(page.locator(".welcome")).to_be_visible()
        assert wait_until(lambda: num_open(slow) == 0)
        assert kept(page) == []


def test_question_can_be_edited_while_it_is_answered(page: Any) -> None:
    slow = slow_service(0.02)
    with http_server(slow) as url:
        page.goto(url)
        start_answer(page, "First")
        page.click(".edit")
        page.fill(".editor textarea", "Second")
        page.keyboard.press("Enter")
        expect(page.locator(".bubble")).to_have_text("Second")
        expect(page.locator(".body")).to_contain_text("abc")
        assert wait_until(lambda: num_open(slow) == 1)  # the first has left the engine
        assert page.get_attribute("#send", "aria-label") == "Stop"  # and its end did not end the second
        page.keyboard.press("Escape")
        expect(page.locator(".numbers")).to_contain_text("stopped")
        assert [e["question"] for e in kept(page)[0]["exchanges"]] == ["Second"]


def test_screen_reader_hears_an_answer_once(page: Any) -> None:
    with http_server(says(b"abcdefghijklmnopqrstuvwxyz")) as url:
        page.goto(url)
        page.evaluate("""() => {
            window.said = [];
            const box = document.getElementById("announcer");
            new MutationObserver(() => said.push(box.textContent)).observe(box, { childList: true });
        }""")
        ask(page, "Hi")
        said = ["Answering", "tiny · sft: abcdefghijklmnopqrstuvwxyz"]
        assert wait_until(lambda: page.evaluate("said") == said), page.evaluate("said")
        assert page.get_attribute("#log", "aria-live") == "off"


def test_edited_question_replaces_what_follows(sized: Any, url: str) -> None:
    sized.goto(url)
    for question in ("One", "Two", "Three"):
        ask(sized, question)
    sized.locator(".edit").nth(1).click()
    sized.fill(".editor textarea", "Zwei")
    sized.click(".editor .solid")
    expect(sized.locator(".numbers")).to_have_count(2)
    assert sized.locator(".bubble").all_inner_texts() == ["One", "Zwei"]
    assert [e["question"] for e in kept(sized)[0]["exchanges"]] == ["One", "Zwei"]


def test_arrow_up_edits_the_last_question_and_escape_leaves_it(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "One")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".editor textarea")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("One")


def test_conversations_stay_after_a_reload(sized: Any, url: str) -> None:
    sized.goto(url)
    ask(sized, "First question")
    open_sidebar(sized)
    sized.click("#fresh")
    expect(sized.locator(".exchange")).to_have_count(0)
    ask(sized, "Second question")
    answer = sized.inner_text(".body")
    sized.reload()
    open_sidebar(sized)
    assert sized.locator(".chat-title").all_inner_texts() == ["Second question", "First question"]
    sized.locator(".chat-title").first.click()
    assert sized.inner_text(".bubble") == "Second question"
    assert sized.inner_text(".body") == answer
    ask(sized, "And again?")  # the conversation goes on where it was
    assert [len(chat["exchanges"]) for chat in kept(sized) if chat["exchanges"][0]["question"][0] == "S"] == [2]


def test_rename_delete_and_undo(sized: Any, url: str) -> None:
    sized.goto(url)
    ask(sized, "A question")
    open_sidebar(sized)
    sized.click(".more")
    sized.click("text=Rename")
    sized.fill("#chats input", "A title")
    sized.keyboard.press("Enter")
    assert sized.inner_text(".chat-title") == "A title"
    assert kept(sized)[0]["title"] == "A title"
    sized.click(".more")
    sized.click("#menu >> text=Delete")
    assert kept(sized) == []
    expect(sized.locator(".exchange")).to_have_count(0)
    sized.click("#notice >> text=Undo")
    expect(sized.locator(".bubble")).to_have_text("A question")
    assert kept(sized)[0]["title"] == "A title"


def test_export(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "A question")
    page.click(".more")
    with page.expect_download() as download:
        page.click("text=Export as JSON")
    assert json.loads(Path(download.value.path()).read_text()) == kept(page)[0]
    assert download.value.suggested_filename == "A-question.json"
    page.click(".more")
    with page.expect_download() as download:
        page.click("text=Save as Markdown")
    text = Path(download.value.path()).read_text()
    assert text.startswith("# A question\n\n**You**\n\nA question\n\n**tiny-sft**\n\nNow: ")


def test_full_storage_is_said_and_the_chat_goes_on(page: Any, url: str) -> None:
    page.goto(url)
    page.evaluate("""() => {
        for (let size = 2 ** 22; size >= 1; size /= 2)
            try { for (let i = 0; ; i++) localStorage.setItem(`full ${size} ${i}`, "x".repeat(size)); } catch {}
    }""")
    ask(page, "Is there room?")
    expect(page.locator("#notice")).to_contain_text("no room for this conversation")
    ask(page, "And now?")
    assert page.locator(".bubble").all_inner_texts() == ["Is there room?", "And now?"]


def test_broken_entries_of_the_storage_are_left_out(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "A question")
    page.evaluate("""() => {
        localStorage["raychat.chat.a"] = "{";
        localStorage["raychat.chat.b"] = "[]";
        localStorage["raychat.settings"] = '{"temperature": "hot", "top_p": 7, "top_k": 3}';
    }""")
    page.reload()
    assert page.locator(".chat-title").all_inner_texts() == ["A question"]
    page.click("#open-settings")
    assert page.locator("#fields output").all_inner_texts()[:3] == ["0.7", "1", "3"]


def sent(page: Any, question: str) -> dict[str, Any]:
    """Ask and return the body of the request."""
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, question)
    body = request.value.post_data_json
    assert isinstance(body, dict)
    return body


def test_settings_and_system_prompt_reach_the_model(page: Any, url: str) -> None:
    page.goto(url)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#setting-temperature", "0.2")
    page.fill("#setting-top_k", "0")
    page.fill("#setting-seed", "7")
    page.keyboard.press("Tab")
    page.click("#settings .solid")
    body = sent(page, "Hi")
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.2, 7, 512)
    assert "top_k" not in body  # 0 = all, which every server understands by leaving it out
    page.reload()
    assert sent(page, "Hi")["temperature"] == 0.2
    assert sent(page, "Hi again")["messages"][1]["content"].startswith("Now: <<6*7=42>>")


def test_commands(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "One")
    for command in ("/system Be brief.", "/set temperature 0.3", "/set seed 5"):
        page.fill("#input", command)
        page.keyboard.press("Enter")
        expect(page.locator("#input")).to_have_value("")
    body = sent(page, "Two")
    assert (body["messages"][0]["content"], body["temperature"], body["seed"]) == ("Be brief.", 0.3, 5)
    for command, answer in (
        ("/system", "Be brief."),
        ("/set top_k none", "top_k is none"),
        ("/set", "temperature is 0.3, top_p is none, top_k is none, min_p is none, max_tokens is 512, seed is 5"),
        ("/system none", "This conversation has no system prompt now."),
        ("/system", "This conversation has no system prompt."),
        ("/set seed none", "seed is none"),
    ):
        page.fill("#input", command)
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text(answer, ignore_case=True)
    page.fill("#input", "/undo")
    page.keyboard.press("Enter")
    expect(page.locator("#input")).to_have_value("Two")
    assert page.locator(".bubble").all_inner_texts() == ["One"]
    page.fill("#input", "/rename My chat")
    page.keyboard.press("Enter")
    assert page.title() == "My chat · raychat"
    page.fill("#input", "/n")
    expect(page.locator("#commands [aria-selected=true]")).to_contain_text("/new")
    page.keyboard.press("Enter")
    expect(page.locator(".welcome")).to_be_visible()


@pytest.mark.parametrize(
    "command, message",
    [
        ("/nothing", "There is no command /nothing; /help lists them"),
        ("/set temperature 9", "Temperature should be from 0 to 2"),
        ("/set temperature", "Temperature should be a number"),
        ("/set temperature none", "Temperature should be a number"),
        ("/set seed", "Seed should be a number"),
        ("/set heat 1", "There is no setting heat; expected one of temperature"),
        ("/model gpt-4", "There is no model gpt-4; expected one of tiny-sft"),
        ("/undo", "There is no question yet"),
    ],
)
def test_wrong_command_is_explained_and_kept(page: Any, url: str, command: str, message: str) -> None:
    page.goto(url)
    page.fill("#input", command)
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text(message)
    expect(page.locator("#input")).to_have_value(command)


def test_failure_is_shown_and_can_be_tried_again(sized: Any, url: str) -> None:
    sized.goto(url)
    sized.fill("#input", "x" * 600)
    sized.keyboard.press("Enter")
    expect(sized.locator(".failed")).to_contain_text("at most 512, the context. Shorten the question")
    sized.click(".failed .again")
    expect(sized.locator(".failed")).to_contain_text("at most 512")
    sized.click(".edit")
    sized.fill(".editor textarea", "Short")
    sized.keyboard.press("Enter")
    expect(sized.locator(".numbers")).to_be_visible()
    assert sized.locator(".exchange").count() == 1


def test_server_that_is_gone_is_said(page: Any) -> None:
    with http_server(service(scripted_model([[START, *b"Hi", END]]))) as url:
        page.goto(url)
        ask(page, "Hello")
    page.fill("#input", "Are you there?")
    page.keyboard.press("Enter")
    expect(page.locator(".failed")).to_contain_text("The server cannot be reached")


def test_key_is_asked_for_and_forgotten_with_the_tab(page: Any) -> None:
    with http_server(says(b"abc"), ServerSettings(api_keys=("secret",))) as url:
        page.goto(url)
        page.fill("#key-input", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-input")).to_have_value("")  # it asks again
        page.fill("#key-input", "secret")
        page.keyboard.press("Enter")
        expect(page.locator(".picker")).to_have_text("tiny · sft")
        ask(page, "Hi")
        assert page.inner_text(".body") == "abc"
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_server_that_is_busy_says_when_to_try_again(page: Any) -> None:
    settings = ServerSettings(api_keys=("secret",), requests_per_minute=2)
    with http_server(says(b"abc"), settings) as url:
        page.goto(url)
        page.evaluate("sessionStorage.setItem('raychat.key', 'secret')")
        page.reload()
        expect(page.locator(".picker")).to_be_visible()
        for question in ("One", "Two", "Three"):
            page.fill("#input", question)
            page.keyboard.press("Enter")
            expect(page.locator("#send")).to_have_attribute("aria-label", "Send")
        expect(page.locator(".failed").last).to_contain_text(re.compile(r"\(in \d+ s\)"))


def choose(page: Any, lane: int, label: str) -> None:
    page.locator(".picker").nth(lane).click()
    page.locator("#model-list").get_by_role("button", name=label).first.click()


def test_models_and_steps_can_be_chosen(sized: Any, family: str) -> None:
    sized.goto(family)
    expect(sized.locator(".picker")).to_have_text("tiny · rl")
    sized.click(".picker")
    assert sized.locator("#model-list h2").all_inner_texts() == ["Run tiny", "Run other"]
    assert [row.split("\n")[0] for row in sized.locator(".model-row").all_inner_texts()] == ["rl", "sft", "base", "sft"]
    sized.keyboard.press("Escape")
    ask(sized, "Who?")
    choose(sized, 0, "sft, step 4")
    expect(sized.locator(".picker")).to_have_text("tiny · sft · step 4")
    ask(sized, "And now?")
    assert sized.locator(".body").all_inner_texts() == ["abc", "ghi"]


def test_new_steps_appear_when_the_list_is_opened(page: Any) -> None:
    several = Several(says(b"abc"))
    with http_server(several) as url:
        page.goto(url)
        expect(page.locator(".picker")).to_be_visible()
        several.add(says(b"def", step=5, latest=False))
        page.click(".picker")
        page.click("#model-list >> text=5")
        ask(page, "Who?")
        assert page.inner_text(".body") == "def"
        page.evaluate("""() => { for (const key of Object.keys(localStorage))
            localStorage[key] = localStorage[key].replaceAll("@5", "@99"); }""")
        page.reload()
        page.click(".chat-title")
        expect(page.locator(".picker")).to_have_text("tiny · sft")  # the default: there is no step 99


def test_compare_asks_two_models(sized: Any, family: str) -> None:
    sized.goto(family)
    ask(sized, "Alone")
    sized.click("#compare")
    assert sized.locator(".picker").all_inner_texts() == ["A: tiny · rl", "B: tiny · sft"]  # the stage before
    sized.fill("#input", "Both")
    sized.keyboard.press("Enter")
    expect(sized.locator(".numbers")).to_have_count(3)
    assert sized.locator(".body").all_inner_texts() == ["abc", "abc", "def"]
    boxes = [box.bounding_box() for box in sized.locator(".answer").all()[1:]]
    beside = boxes[0]["y"] == boxes[1]["y"]
    assert beside == (sized.viewport_size["width"] == 1280)
    choose(sized, 1, "sft, step 4")
    with sized.expect_request(lambda r: "@4" in (r.post_data or "")) as request:
        sized.locator(".again").last.click()  # one lane alone, by the model that is chosen now
        expect(sized.locator(".body").last).to_have_text("ghi")
    said = [m["content"] for m in request.value.post_data_json["messages"]]
    assert said == ["Alone", "abc", "Both"]  # what was said before B came is B's conversation too
    sized.click("#compare")
    ask(sized, "Alone again")
    assert sized.locator(".body").all_inner_texts() == ["abc", "abc", "ghi", "abc"]


def test_one_failure_leaves_the_other_answer_alone(page: Any, family: str) -> None:
    page.goto(family)
    page.click("#compare")
    page.route("**/v1/chat/completions", lambda r: r.abort() if "sft" in r.request.post_data else r.continue_())
    page.fill("#input", "Both")
    page.keyboard.press("Enter")
    expect(page.locator(".failed")).to_contain_text("cannot be reached")
    expect(page.locator(".body").first).to_have_text("abc")
    page.unroute("**/v1/chat/completions")
    page.click(".failed .again")
    expect(page.locator(".body").last).to_have_text("def")


def test_base_model_continues_a_text(page: Any, family: str) -> None:
    page.goto(family)
    choose(page, 0, "base")
    expect(page.locator("h1")).to_have_text("Begin a text.")
    with page.expect_request("**/v1/completions") as request:
        ask(page, "It begins: j")
    assert request.value.post_data_json["prompt"] == "It begins: j"
    assert page.inner_text(".body") == "kl"


def background(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light(sized: Any, url: str) -> None:
    sized.emulate_media(color_scheme="light")
    sized.goto(url)
    light = background(sized)
    sized.emulate_media(color_scheme="dark")
    dark = background(sized)
    assert light != dark
    sized.click("#open-settings")
    sized.click("#themes >> text=Light")
    assert background(sized) == light
    sized.reload()
    assert background(sized) == light  # although the system is dark


LINES = b"ab\n"


def growing() -> Any:
    """A model whose answer is ever more short lines."""
    model = scripted_model([[START, *LINES, LINES[0]]], sequence_len=1024)
    model.lm_head.register_forward_pre_hook(lambda module, args: time.sleep(0.005))
    return service(model)


def end_distance(page: Any) -> float:
    return page.evaluate(
        "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)"
        "(document.getElementById('scroller'))"
    )


def height_of_log(page: Any) -> int:
    return page.evaluate("document.getElementById('log').clientHeight")


def test_page_follows_the_answer_until_the_reader_scrolls_up(page: Any) -> None:
    page.set_viewport_size({"width": 700, "height": 420})
    with http_server(growing()) as url:
        page.goto(url)
        page.fill("#input", "Lines, please")
        page.keyboard.press("Enter")
        assert wait_until(lambda: page.evaluate("document.getElementById('scroller').scrollTop") > 100)
        assert end_distance(page) < 40
        page.mouse.move(350, 200)
        page.mouse.wheel(0, -60)
        expect(page.locator("#to-end")).to_be_visible()
        height, top = height_of_log(page), page.evaluate("document.getElementById('scroller').scrollTop")
        assert wait_until(lambda: height_of_log(page) > height + 200)
        assert page.evaluate("document.getElementById('scroller').scrollTop") == top
        page.click("#to-end")
        assert wait_until(lambda: height_of_log(page) > height + 400)
        assert end_distance(page) < 40
        page.click("#send")


def test_selection_survives_streaming(page: Any) -> None:
    with http_server(growing()) as url:
        page.goto(url)
        page.fill("#input", "Lines, please")
        page.keyboard.press("Enter")
        expect(page.locator(".body")).to_contain_text("ab")
        page.evaluate("""() => {
            const text = document.querySelector(".body p").firstChild;
            getSelection().setBaseAndExtent(text, 0, text, 2);
        }""")
        length = len(page.inner_text(".body"))
        assert wait_until(lambda: len(page.inner_text(".body")) > length + 40)
        assert page.evaluate("getSelection().toString()") == "ab"
        page.click("#send")


OUTSIDE = """(width) =>
    [document.documentElement, document.getElementById("scroller")].filter((e) => e.scrollWidth > e.clientWidth)
        .concat([...document.querySelectorAll("body *")].filter((e) => {
            const { left, right } = e.getBoundingClientRect();
            const hidden = !e.checkVisibility() || e.closest("pre code, .table table, .offscreen, #sidebar, .skip");
            return !hidden && (left < -0.5 || right > width + 0.5);
        })).map((e) => e.outerHTML.slice(0, 80))"""
LONG_NAME = "a-run-whose-name-is-longer-than-a-phone-is-wide-sft"
WIDE = f"""What is {"1234567890" * 8}?
```python
return some_function_with_a_long_name(x, another_argument=1, yet_another_argument_with_a_long_name=2)
```
| a table | {" | ".join("column" for _ in range(9))} |
|{"---|" * 10}
| {" | ".join("cell" for _ in range(10))} |

See `inline_code_that_does_not_end_before_the_line_does` and https://example.com/{"z" * 100}"""


def wide_chat() -> dict[str, Any]:
    """A kept conversation, compared, with everything that could be too wide."""
    call = [
        {"type": "python", "text": "<<" + "9" * 60 + "*2"},
        {"type": "python_output", "text": "=" + "1" * 60 + ">>"},
    ]
    answer = {"model": LONG_NAME, "parts": [{"type": "text", "text": WIDE}, *call], "finish": "stop", "failure": None}
    failed = {"model": LONG_NAME, "parts": [], "finish": None, "failure": {"message": "x" * 200, "status": 500}}
    numbers = {"promptTokens": 100, "tokens": 50, "seconds": 1}
    exchange = {"question": WIDE, "answers": [{**answer, **numbers}, {**failed, **numbers}]}
    one = {"question": "y" * 300, "answers": [{**answer, **numbers}]}
    chat = {"id": "wide", "title": "", "created": 1, "updated": 1, "system": "", "models": [LONG_NAME, LONG_NAME]}
    return {**chat, "exchanges": [exchange, one]}


def test_nothing_is_wider_than_the_window(sized: Any) -> None:
    """Only code blocks and tables scroll sideways, inside their boxes."""
    width = sized.viewport_size["width"]
    outside = lambda: sized.evaluate(OUTSIDE, width)  # noqa: E731
    with http_server(service(scripted_model([[START, END]]), name=LONG_NAME)) as url:
        sized.goto(url)
        assert outside() == []
        sized.evaluate("(chat) => { localStorage['raychat.chat.wide'] = JSON.stringify(chat); }", wide_chat())
        sized.reload()
        open_sidebar(sized)
        sized.click(".chat-title")
        assert (
            sized.locator(".chip b").count() == sized.locator("pre code").count() == sized.locator("table").count() == 2
        )
        assert outside() == []
        sized.fill("#input", "y" * 300)
        assert outside() == []
        sized.fill("#input", "/")
        assert outside() == []
        sized.locator(".picker").first.click()
        assert outside() == []
        sized.keyboard.press("Escape")
        sized.locator(".edit").first.click()
        assert outside() == []
        for dialog in ("open-settings", None):
            sized.click(f"#{dialog}") if dialog else (sized.fill("#input", "/help"), sized.press("#input", "Enter"))
            assert outside() == []
            sized.keyboard.press("Escape")
        open_sidebar(sized)
        assert outside() == []


def test_every_control_has_a_name(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "Hi")
    page.click("#open-settings")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, [role]")]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.getAttribute("aria-labelledby")))
        .filter((e) => !e.closest("[hidden], [popover]") && e.role !== "status").map((e) => e.outerHTML)""")
    assert nameless == []


def test_keyboard_reaches_everything_in_order(page: Any, url: str) -> None:
    page.goto(url)
    ask(page, "Hi")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    expect(page.locator("#input")).to_be_focused()
    assert page.input_value("#input") == ""
    page.reload()
    page.locator(".chat-title").click()
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(({ id, title, className }) => id || title || className)(document.activeElement)"))
    order = ["hide-sidebar", "fresh", "compare", "open-settings", "Edit the question", "Copy", "Regenerate", "input"]
    assert [name for name in seen if name in order] == order, seen

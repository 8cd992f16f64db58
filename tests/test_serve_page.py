"""The chat page in a real browser: headless Chromium, driven through its DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_serve import END, SPECIAL, START, num_open, service, slow_service, wait_until
from tiny import http_server, scripted_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT_S = 30.0

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, profile: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,820"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run", "about:blank"]
        self._process = subprocess.Popen([str(CHROMIUM), *flags], stderr=subprocess.DEVNULL)
        self._loop = asyncio.new_event_loop()
        self._num_sent = 0
        self.events: list[dict[str, Any]] = []
        self._run(self._connect(profile / "DevToolsActivePort"))
        for domain in ("Page", "Network", "Runtime"):
            self.send(f"{domain}.enable")

    def _run(self, what: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(what, TIMEOUT_S))

    async def _connect(self, port_file: Path) -> None:
        while not port_file.exists() or not port_file.read_text().strip():
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        url = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list"
        while not (pages := [p for p in await (await self._session.get(url)).json() if p["type"] == "page"]):
            await asyncio.sleep(0.05)
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._run(self._send(method, params))

    async def _send(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._num_sent += 1
        await self._socket.send_json({"id": self._num_sent, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._num_sent:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.getElementById('model')?.textContent")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < end, f"still not true: {expression}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Type into whatever has the focus, then press Enter."""
        self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def click(self, selector: str) -> None:
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        return int(self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._run(self._socket.close())
        self._run(self._session.close())
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        self._loop.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A model that answers "Sure: <<6*7=42>>é🙂. <b>" whatever it is asked."""
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    model = scripted_model([[START, *b"Sure: ", *call], [SPECIAL["<|output_end|>"], *"é🙂.\n<b>".encode(), END]])
    with http_server(service(model)) as url:
        yield url


def test_question_and_answer(browser: Browser, url: str, tmp_path: Path) -> None:
    browser.events.clear()
    browser.open(url)
    assert browser.text("#model") == "tiny-sft"
    browser.type("What is 6 * 7? <img src=x>")
    browser.wait("document.querySelector('.note')")
    assert browser.text(".user .text") == "What is 6 * 7? <img src=x>"  # shown as text, not as a picture
    assert browser.evaluate("document.querySelector('.assistant .text').textContent") == "Sure: 6*7= 42é🙂.\n<b>"
    assert browser.text(".assistant .calc b") == "= 42"
    assert "27 tokens" in browser.text(".note")
    assert browser.evaluate("document.activeElement.id") == "input"
    browser.screenshot(tmp_path / "answer.png")
    assert (tmp_path / "answer.png").stat().st_size > 10_000  # an empty page has about 5,000

    browser.type("And again?")
    browser.wait("document.querySelectorAll('.note').length === 2")
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert requests
    assert all(r.startswith((url, "data:")) for r in requests)
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_new_chat_forgets(browser: Browser, url: str) -> None:
    browser.open(f"{url}/?q=Hello")
    browser.wait("document.querySelector('.note')")
    browser.click("#fresh")
    assert browser.count(".turn") == 0
    assert browser.evaluate("said.length") == 0
    browser.click(".ideas button")
    browser.wait("document.querySelector('.note')")
    assert browser.count(".turn") == 2


def test_error_is_shown_and_the_question_given_back(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.type("x" * 200)
    browser.wait("document.querySelector('.failed')")
    assert "at most 128, the context" in browser.text(".failed")
    assert browser.evaluate("document.getElementById('input').value") == "x" * 200
    assert browser.count(".user") == 0


def test_stop_button(browser: Browser) -> None:
    slow = slow_service(0.02)
    with http_server(slow) as url:
        browser.open(url)
        browser.type("The alphabet, please")
        browser.wait("document.querySelector('.assistant .text')?.textContent.length > 5")
        assert browser.evaluate("document.getElementById('send').getAttribute('aria-label')") == "Stop"
        assert num_open(slow) == 1
        browser.click("#send")
        browser.wait("document.querySelector('.note')?.textContent.includes('stopped')")
        assert wait_until(lambda: num_open(slow) == 0, timeout_s=5)
        said = browser.evaluate("said.map((m) => m.content)")
        assert said[0] == "The alphabet, please"
        assert said[1].startswith("abcdef")
        assert browser.evaluate("document.getElementById('send').getAttribute('aria-label')") == "Send"

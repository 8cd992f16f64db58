"""Take the README's pictures: the chat page and the report card of a run, as a browser shows them.

    python tests/pictures.py [RUN]

serves the run (tiny) without Ray, asks what the page suggests, and writes docs/images/chat.png and report.png. It needs
Playwright and Chromium (Debian: apt-get install chromium).
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import expect, sync_playwright

from raychat import paths

REPO = Path(__file__).parent.parent
IMAGES = REPO / "docs" / "images"
WIDTH, HEIGHT = 1100, 760
NUM_ASKED = 3
START_S = 120.0


@contextmanager
def served(run: str) -> Iterator[str]:
    """Serve a run in a process of its own; yield its URL."""
    command = [sys.executable, "jobs/serve.py", "--run", run, "--cluster.workers", "0", "--port", "0"]
    with (
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=REPO, stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not (found := re.search(r"chat at (http://\S+?),", Path(log.name).read_text())):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} does not serve: {Path(log.name).read_text()}")
                time.sleep(0.2)
            yield found[1]
        finally:
            server.terminate()


def chat(page: Any, url: str) -> None:
    """Ask the page's suggestions, one after the other in one conversation."""
    page.goto(url)
    buttons = page.locator(".ideas button")
    expect(buttons.first).to_be_visible()
    for number, question in enumerate(buttons.all_inner_texts()[:NUM_ASKED], 1):
        page.fill("#input", question)
        page.keyboard.press("Enter")
        expect(page.locator(".numbers")).to_have_count(number, timeout=60_000)


def main(run: str = "tiny") -> None:
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright, served(run) as url:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5)
        chat(page, url)
        page.screenshot(path=IMAGES / "chat.png")
        page.goto(f"file://{paths.join(paths.home(), 'runs', run, 'report', 'report.html')}")
        page.screenshot(path=IMAGES / "report.png")
        browser.close()
    print(f"{IMAGES / 'chat.png'}, {IMAGES / 'report.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

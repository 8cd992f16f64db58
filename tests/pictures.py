"""Take the README's pictures: the chat page and the report card of a run, as a browser shows them.

    python tests/pictures.py [RUN]

serves the run (tiny) without Ray, asks what the page suggests, and writes docs/images/chat.png and report.png. It needs
Playwright and Chromium (Debian: apt-get install chromium).
"""

import sys
from pathlib import Path
from typing import Any

from chromium import find_chromium, launch
from playwright.sync_api import expect, sync_playwright
from tiny_server import http_server

from raychat import paths
from raychat.runs import find_checkpoint
from raychat.serve.models import open_models

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH, HEIGHT = 1100, 760
NUM_ASKED = 3
MAX_SEQUENCES = 4


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
    path = find_chromium()
    if path is None:
        raise SystemExit("there is no Chromium here; Debian: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    storage = paths.home()
    models = open_models(storage, find_checkpoint(storage, run).name, run, MAX_SEQUENCES, max_loaded=1)
    with sync_playwright() as playwright, http_server(models) as url:
        browser = launch(playwright, path)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5)
        chat(page, url)
        page.screenshot(path=IMAGES / "chat.png")
        page.goto(f"file://{paths.join(storage, 'runs', run, 'report', 'report.html')}")
        page.screenshot(path=IMAGES / "report.png")
        browser.close()
    print(f"{IMAGES / 'chat.png'}, {IMAGES / 'report.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

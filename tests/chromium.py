"""Debian's Chromium, driven by Playwright."""

import shutil
from typing import Any


def find_chromium() -> str | None:
    """Return the path of this machine's Chromium; None = there is none (Debian: apt-get install chromium)."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def launch(playwright: Any, path: str) -> Any:
    """Start a browser without a window, also as root and without a GPU."""
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

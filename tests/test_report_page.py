"""The report card in a real browser: it fits a desk and a phone, in light and dark, and asks nobody for anything."""

from pathlib import Path
from typing import Any

import pytest
from test_report import write_run

from raychat import report


@pytest.fixture(params=[1280, 390, 320])
def shown(page: Any, request: Any, tmp_path: Path) -> Any:
    folder = str(tmp_path / "demo")
    write_run(folder)
    report.write(folder)
    page.set_viewport_size({"width": request.param, "height": 800})
    page.set_content((tmp_path / "demo" / "report" / "report.html").read_text())
    return page


def test_nothing_is_wider_than_the_window(shown: Any) -> None:
    shown.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    right = "[...document.querySelectorAll('main *')].map((part) => part.getBoundingClientRect().right)"
    assert shown.evaluate(f"Math.max(...{right}) <= innerWidth")


def test_one_picture_is_shown_and_its_text_can_be_read(shown: Any) -> None:
    pictures = shown.locator("figure svg")
    visible = [pictures.nth(i) for i in range(pictures.count()) if pictures.nth(i).is_visible()]
    assert len(visible) == 1
    drawn_at = float(visible[0].get_attribute("width"))
    assert visible[0].bounding_box()["width"] >= 0.8 * drawn_at


def test_phone_names_the_column_of_every_figure(shown: Any) -> None:
    on_a_phone = shown.viewport_size["width"] < 640
    assert shown.locator("#results thead").is_visible() != on_a_phone
    cell = shown.locator("#results td", has_text="0.6250")
    label = cell.evaluate("(cell) => getComputedStyle(cell, '::before').content")
    assert ("SFT" in label) == on_a_phone

"""The page of a run that trains follows it, and the reader keeps the place."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_report import EVIL, write_run, write_stage

from jobs import report as job
from raychat.report.live import Follower, server_of


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The folder of a run that does not exist yet, and the URL of its page."""
    folder = str(tmp_path / "runs" / "demo")
    with server_of(Follower(folder, every_s=0.0), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_page_waits_for_the_run_and_then_shows_it(served: tuple[str, str]) -> None:
    folder, url = served
    waiting = httpx.get(url)
    assert waiting.status_code == 200
    assert "Waiting for the run" in waiting.text
    assert f"{folder} has none of the stages" in waiting.text
    write_run(folder)
    assert "demo: report card" in httpx.get(f"{url}/body").text


def test_figures_of_an_unfinished_stage(served: tuple[str, str]) -> None:
    folder, url = served
    rows = [{"step": step, "loss": 2.0, "t": step * 1.0} for step in (1, 2)]
    write_stage(f"{folder}/base", None, None, rows)
    assert "unfinished: BASE" in httpx.get(f"{url}/body").text
    write_stage(f"{folder}/base", None, None, [*rows, {"step": 777, "val_bpb": 1.2345, "t": 9.0}])
    text = httpx.get(f"{url}/body").text
    assert "777" in text
    assert "1.2345" in text


def test_storage_is_not_read_for_every_reader(tmp_path: Path) -> None:
    follower = Follower(str(tmp_path / "demo"), every_s=1000.0)
    assert "Waiting" in follower.body()
    write_run(str(tmp_path / "demo"))
    assert "Waiting" in follower.body()


def test_remote_storage() -> None:
    folder = "memory://report-live/runs/demo"
    write_run(folder)
    assert "0.6250" in Follower(folder).body()


def test_nothing_else_is_served(served: tuple[str, str]) -> None:
    folder, url = served
    write_run(folder)
    assert httpx.get(f"{url}/base/summary.json").status_code == 404
    policy = httpx.get(url).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "<script>alert" not in httpx.get(url).text
    assert EVIL.split()[0] not in httpx.get(url).text


def test_job_says_that_the_run_does_not_exist_yet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", stop)
    job.run(job.Args(run="later", serve=True, port=0))
    printed = capsys.readouterr().out
    assert "report of later: http://127.0.0.1:" in printed
    assert "does not exist yet" in printed


def test_reader_keeps_the_place_while_figures_change(page: Any, served: tuple[str, str]) -> None:
    folder, url = served
    write_run(folder)
    page.goto(url)
    page.locator("#core-by-task summary").click()
    page.evaluate("window.kept = document.querySelector('#results'); scrollTo(0, 900)")
    place = "document.querySelector('#results').getBoundingClientRect().top"
    before = page.evaluate(place)
    assert page.evaluate("scrollY") > 0
    rows = [{"step": step, "loss": 2.0, "t": step * 1.0} for step in range(1, 4)]
    write_stage(f"{folder}/mid", None, None, rows)
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(page.locator("header")).to_contain_text("unfinished: MID", timeout=60_000)
    assert page.evaluate(place) == pytest.approx(before, abs=2)  # though what is above has another height
    assert page.locator("#core-by-task").get_attribute("open") is not None
    assert page.evaluate("window.kept.isConnected")  # what did not change was not replaced
    assert "MID (unfinished)" in page.inner_text("#time-and-cost")

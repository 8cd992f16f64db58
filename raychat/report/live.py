"""Follow a run while it trains: a small server of this machine, whose page brings its figures up to date."""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

from raychat import paths
from raychat.report import card
from raychat.report.figures import collect
from raychat.report.page import body, whole

HOST = "127.0.0.1"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Follower:
    """The report card of a run, read from the storage anew at most every `every_s` seconds."""

    def __init__(self, run_folder: str, *, price_per_hour: float | None = None, every_s: float = 5.0) -> None:
        self._folder, self._price, self._every_s = run_folder, price_per_hour, every_s
        self._lock, self._read_at, self._body = threading.Lock(), -every_s, ""

    def body(self) -> str:
        """Return what the page shows now; what is awaited while the run has no stage."""
        with self._lock:
            if time.monotonic() - self._read_at >= self._every_s:
                self._body, self._read_at = self._read(), time.monotonic()
            return self._body

    def page(self) -> str:
        """Return the page with the script that brings it up to date."""
        script = (resources.files("raychat.report") / "live.js").read_text(encoding="utf-8")
        return whole(f"{paths.name(self._folder)}: live", self.body(), script)

    def _read(self) -> str:
        try:
            report, rows = collect(self._folder, self._price)
        except ValueError as error:  # it has not begun
            return body("Waiting for the run", f"{error}. This page shows it as soon as it begins.", [])
        return body(*card.heading(report), card.sections(report, rows))


def server_of(follower: Follower, port: int) -> ThreadingHTTPServer:
    """Return a server of this machine that shows the follower's page. port: 0 = any that is free.

    Raises:
        OSError: another program listens on the port.
    """
    answers: dict[str, Callable[[], str]] = {"/": follower.page, "/body": follower.body}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            try:
                text, status = (answer(), HTTPStatus.OK) if answer else ("not found", HTTPStatus.NOT_FOUND)
            except Exception as error:  # a storage that is away for a moment: the page keeps what it shows
                text, status = f"{type(error).__name__}: {error}", HTTPStatus.SERVICE_UNAVAILABLE
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8" if status == HTTPStatus.OK else "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing: the page asks every few seconds."""

    server = ThreadingHTTPServer((HOST, port), Handler)
    server.daemon_threads = True
    return server

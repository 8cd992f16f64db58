"""The chat service by HTTP, in a thread of the test."""

import contextlib
import threading
from collections.abc import Iterator

import uvicorn

from raychat.serve.http import Backend, make_app
from raychat.serve.run import listen
from raychat.serve.settings import ServerSettings


@contextlib.contextmanager
def http_server(backend: Backend, settings: ServerSettings | None = None) -> Iterator[str]:
    """Serve a backend by HTTP from a thread of this process; yield its URL. settings: None = the default ones."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(backend, settings), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

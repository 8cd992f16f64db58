"""Serve from this process, without Ray."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn

from raychat.runs import find_checkpoint
from raychat.serve.http import Backend, make_app
from raychat.serve.service import ChatService, card_of
from raychat.serve.settings import API_KEYS_VARIABLE, ServerSettings

READY = "chat at http://{}:{}, the API is below /v1; Ctrl-C ends"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; port 0 = a free one."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise ValueError(
            f"cannot listen on {host}:{port}: {e.strerror}. Stop the server there, or choose another port: --port N"
        ) from None


def serve_here(storage: str, run: str | None, stage: str | None, max_sequences: int, host: str, port: int) -> None:
    """Serve a checkpoint until interrupted; run, stage: as in `find_checkpoint`."""

    def load() -> Backend:
        found = find_checkpoint(storage, run, stage)
        service = ChatService.load(found.path, card_of(found), max_sequences)
        print(f"serving {found.name} from {found.path}", flush=True)
        return service

    serve_until_interrupted(load, ServerSettings.from_environment(host=host, port=port))


def serve_until_interrupted(load: Callable[[], Backend], settings: ServerSettings) -> None:
    """Serve what `load` returns, which is called when the port is ours."""
    with listen(settings.host, settings.port) as server, contextlib.suppress(KeyboardInterrupt):
        app = make_app(load(), settings)
        if not settings.api_keys:
            print(f"no API keys ({API_KEYS_VARIABLE}): only this machine can connect", flush=True)
        print(READY.format(settings.host, server.getsockname()[1]), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[server])

"""Serve one engine from this process, without Ray."""

import contextlib
import socket

import uvicorn

from raychat.runs import find_checkpoint
from raychat.serve.http import make_app
from raychat.serve.service import ChatService, card_of

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
    """Serve until interrupted; run, stage: as in `find_checkpoint`."""
    with listen(host, port) as server, contextlib.suppress(KeyboardInterrupt):
        found = find_checkpoint(storage, run, stage)
        service = ChatService.load(found.path, card_of(found), max_sequences)
        print(f"serving {found.name} from {found.path}", flush=True)
        print(READY.format(host, server.getsockname()[1]), flush=True)
        uvicorn.Server(uvicorn.Config(make_app(service))).run(sockets=[server])

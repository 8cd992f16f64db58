"""Serve from this process, without Ray."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

import uvicorn

from raychat.runs import find_checkpoint
from raychat.serve.http import Backend, make_app
from raychat.serve.models import open_models
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


def announce(settings: ServerSettings, port: int, statistics: Sequence[int] = ()) -> None:
    """Print where the server listens, and to whom. statistics: ports that HAProxy opens besides, to everybody."""
    if not settings.api_keys:
        print(f"no API keys ({API_KEYS_VARIABLE}): only this machine can connect to page and API", flush=True)
    if statistics:
        ports = " and ".join(map(str, statistics))
        print(f"ports {ports} show HAProxy's statistics to all machines: keep them behind a firewall", flush=True)
    print(READY.format(settings.host, port), flush=True)


def serve_here(
    storage: str, run: str | None, stage: str | None, max_sequences: int, max_models: int, settings: ServerSettings
) -> None:
    """Serve the checkpoints of a storage until interrupted.

    Args:
        run, stage: the default model, as in `find_checkpoint`; with a run, only its checkpoints are served.
        max_sequences: that one model generates at once.
        max_models: in memory at once.
    """

    def load() -> Backend:
        found = find_checkpoint(storage, run, stage)
        models = open_models(storage, found.name, run, max_sequences, max_models)
        asyncio.run(models.preload())
        print(f"serving {found.name} from {found.path}", flush=True)
        return models

    serve_until_interrupted(load, settings)


def serve_until_interrupted(load: Callable[[], Backend], settings: ServerSettings) -> None:
    """Serve what `load` returns, which is called when the port is ours."""
    with listen(settings.host, settings.port) as server, contextlib.suppress(KeyboardInterrupt):
        app = make_app(load(), settings)
        announce(settings, server.getsockname()[1])
        uvicorn.Server(uvicorn.Config(app)).run(sockets=[server])

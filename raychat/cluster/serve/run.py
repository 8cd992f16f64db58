"""Serve until interrupted, on Ray or in this process."""

import os
import signal
import threading
from typing import Any

import ray
import uvicorn
from ray import serve

from raychat.cluster import Cluster
from raychat.cluster.launch import connect
from raychat.cluster.serve.app import REQUEST_TIMEOUT_S, build
from raychat.cluster.serve.http import make_app
from raychat.cluster.serve.service import ChatService, card_of
from raychat.runs import find_checkpoint

APPLICATION = "raychat"  # its name on Ray Serve


def serve_on_ray(settings: dict[str, Any], host: str, port: int, cluster: Cluster) -> None:
    """Serve `build(settings)` on the Ray cluster, joined or started, until SIGINT or SIGTERM.

    A cluster that was joined keeps Ray Serve and its other applications.
    """
    joined = ray.is_initialized() or (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    connect(cluster)
    app = build(settings)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S})
    serve.run(app, name=APPLICATION)
    print(f"chat at http://{host}:{port}, the API is below /v1; Ctrl-C ends", flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    if joined:
        serve.delete(APPLICATION)
    else:
        serve.shutdown()


def serve_here(storage: str, run: str | None, stage: str | None, max_sequences: int, host: str, port: int) -> None:
    """Serve one engine from this process, without Ray; run, stage: as in `find_checkpoint`."""
    found = find_checkpoint(storage, run, stage)
    service = ChatService.load(found.path, card_of(found), max_sequences)
    print(f"serving {found.name} from {found.path}", flush=True)
    uvicorn.run(make_app(service), host=host, port=port)

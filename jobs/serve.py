"""Serve a chat model on Ray Serve: the page at /, the OpenAI API under /v1. Ctrl-C ends it.

python jobs/serve.py  (the newest run, on http://127.0.0.1:8000)

python jobs/serve.py --run d20 --stage sft --host 0.0.0.0 --max-replicas 8

python jobs/serve.py --cluster.workers 0  (in this process, without Ray)

`serve run serve_config.yaml` and `serve deploy serve_config.yaml` serve the same application by Ray's own commands.
"""

from dataclasses import dataclass, field
from typing import Literal

from raychat.cluster import Cluster


@dataclass(frozen=True)
class Args:
    run: str | None = None  # name of the run; None = the one that wrote a chat checkpoint last
    stage: Literal["rl", "sft", "mid"] | None = None  # None = the latest that the run has reached
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets others in
    port: int = 8000  # 0 = a free one (with --cluster.workers 0 only)
    max_sequences: int = 16  # that one replica generates at once
    min_replicas: int = 1  # model replicas kept when nobody asks
    max_replicas: int = 2  # model replicas at most, as requests become more
    cluster: Cluster = field(default_factory=Cluster)  # workers 0 = no Ray; else replicas count, not workers


def run(args: Args) -> None:
    """Serve until interrupted."""
    if args.cluster.workers == 0:
        _serve_here(args)
    else:
        _serve_on_ray(args)


def _serve_here(args: Args) -> None:
    import uvicorn

    from raychat.cluster.serve.http import make_app
    from raychat.cluster.serve.service import ChatService, card_of
    from raychat.talk import find_checkpoint

    found = find_checkpoint(args.cluster.storage(), args.run, args.stage)
    service = ChatService.load(found.path, card_of(found), args.max_sequences)
    print(f"serving {found.name} from {found.path}", flush=True)
    uvicorn.run(make_app(service), host=args.host, port=args.port)


def _serve_on_ray(args: Args) -> None:
    from ray import serve

    from raychat.cluster.launch import connect
    from raychat.cluster.serve.app import REQUEST_TIMEOUT_S, build

    connect(args.cluster)
    app = build(
        {
            "run": args.run,
            "stage": args.stage,
            "storage_path": args.cluster.storage(),
            "max_sequences": args.max_sequences,
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "gpus_per_replica": args.cluster.gpus_per_worker,
        }
    )
    serve.start(http_options={"host": args.host, "port": args.port, "request_timeout_s": REQUEST_TIMEOUT_S})
    serve.run(app, name="raychat")
    print(f"chat at http://{args.host}:{args.port}, the API is below /v1; Ctrl-C ends", flush=True)
    _wait_for_interrupt()
    serve.shutdown()


def _wait_for_interrupt() -> None:
    import signal
    import threading

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

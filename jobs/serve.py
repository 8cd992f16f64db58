"""Serve the models of a storage on Ray Serve: the page at /, the OpenAI API under /v1. Ctrl-C ends it.

python jobs/serve.py  (the newest run, on http://127.0.0.1:8000)

RAYCHAT_API_KEYS=secret python jobs/serve.py --run d20 --stage sft --host 0.0.0.0 --max-replicas 8

python jobs/serve.py --cluster.workers 0  (in this process, without Ray)

`serve run serve_config.yaml` and `serve deploy serve_config.yaml` serve the same application by Ray's own commands.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    run: str | None = None  # serve this run only; None = all, the default is the one that wrote a chat model last
    stage: Literal["rl", "sft", "mid", "base"] | None = None  # of the default model; None = the latest to chat with
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets others in who have a key of RAYCHAT_API_KEYS
    port: int = 8000  # 0 = a free one; a cluster that already runs Ray Serve keeps its host and port
    max_sequences: int = 16  # that one model of one replica generates at once
    max_models: int = 2  # in the memory of one replica; the least used one makes room for another
    min_replicas: int = 1  # model replicas when there are no requests
    max_replicas: int = 2  # model replicas at most, as requests become more
    cpus_per_replica: int | None = None  # also its threads; None = what this machine has, shared out; 1 on a cluster
    max_queued: int = 128  # answers of one ingress that wait for their first token; more requests get status 429
    requests_per_minute: int | None = None  # of one API key, at each of Ray's two ingresses; None = no limit
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call the API; "*" = all
    cluster: Cluster = field(default_factory=Cluster)  # workers 0 = without Ray; gpus_per_worker = of a replica

    def __post_init__(self) -> None:
        at_least(self, max_sequences=1, max_models=1, min_replicas=0, max_replicas=1)
        at_least(self, cpus_per_replica=1, max_queued=1, requests_per_minute=1)


def run(args: Args) -> None:
    """Serve until interrupted."""
    storage = args.cluster.storage()
    server: dict[str, Any] = {
        "max_queued": args.max_queued,
        "requests_per_minute": args.requests_per_minute,
        "cors_origins": args.cors_origins,
    }
    if args.cluster.max_workers == 0:
        from raychat.serve.run import serve_here
        from raychat.serve.settings import ServerSettings

        listening = ServerSettings.from_environment(host=args.host, port=args.port, **server)
        serve_here(storage, args.run, args.stage, args.max_sequences, args.max_models, listening)
        return
    from raychat.cluster.serve import serve_on_ray

    settings = {
        "run": args.run,
        "stage": args.stage,
        "storage_path": storage,
        "max_sequences": args.max_sequences,
        "max_models": args.max_models,
        "min_replicas": args.min_replicas,
        "max_replicas": args.max_replicas,
        "gpus_per_replica": args.cluster.gpus_per_worker,
        **server,
    }
    if args.cpus_per_replica is not None:
        settings["cpus_per_replica"] = args.cpus_per_replica
    serve_on_ray(settings, args.host, args.port, args.cluster)


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))

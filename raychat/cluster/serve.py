"""The Ray Serve application: ingresses that speak HTTP, and replicas that hold the models.

serve run serve_config.yaml                        on this machine
serve deploy serve_config.yaml                     on a running cluster
serve run raychat.cluster.serve:build run=tiny max_sequences=8
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.context import _get_global_client

from raychat.cluster import Cluster
from raychat.cluster.replicas import AffinityRouter, ModelReplica, RemoteModels
from raychat.runs import find_checkpoint
from raychat.serve.catalog import Catalog
from raychat.serve.http import make_app
from raychat.serve.models import open_models
from raychat.serve.run import announce, listen
from raychat.serve.settings import ServerSettings
from raychat.serve.transport import REQUEST_TIMEOUT_S, set_environment, statistics_ports

APPLICATION = "raychat"  # its name on Ray Serve
GRACE_S = 120.0  # for a replica that stops to finish its answers
HEALTH_PERIOD_S = 1.0  # Serve replaces a replica that has died at the next check, others after three failed checks

T = TypeVar("T")


class ServeArgs(BaseModel):
    """The settings of `build`: `args` in serve_config.yaml, name=value behind `serve run ...:build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str | None = None  # serve this run only; None = all, the default is the one that wrote a chat model last
    stage: Literal["rl", "sft", "mid", "base"] | None = None  # of the default model; None = the latest to chat with
    storage_path: str | None = None  # None = RAYCHAT_HOME or ~/.cache/raychat, where `build` runs
    max_sequences: int = Field(default=16, ge=1)  # that one model of one replica generates at once
    max_models: int = Field(default=2, ge=1)  # in the memory of one replica
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    upscale_delay_s: float = Field(default=10, gt=0)  # of too much load, before another replica starts
    downscale_delay_s: float = Field(default=600, gt=0)  # of too little load, before a replica stops
    num_ingresses: int = Field(default=2, ge=1)
    max_queued: int = Field(default=128, ge=1)  # requests of one ingress that wait for their first token
    requests_per_minute: int | None = Field(default=None, ge=1)  # of one API key at one ingress; None = no limit
    cors_origins: list[str] = []  # web pages of these origins may call the API; ["*"] = all
    cpus_per_replica: float = Field(default=1, gt=0)  # also its threads
    gpus_per_replica: float | None = Field(default=None, ge=0)  # None = 1 where the cluster, or `build`, has GPUs


def build(args: dict[str, Any]) -> Application:
    """Return the application that `args` (see `ServeArgs`) describe.

    `build` finds the default model, the API keys (RAYCHAT_API_KEYS) and the storage. All machines must be able to read
    the storage. jobs/serve.py and `serve run` with an import path call `build` in the driver, `serve run` and `serve
    deploy` with a file in a task of the cluster.

    Raises:
        ValueError: an argument is wrong, there is no such model, or Serve listens to other machines without API keys.
    """
    settings = _settings(args)
    storage = Cluster(storage_path=settings.storage_path).storage()
    found = find_checkpoint(storage, settings.run, settings.stage)
    # `serve run module:build` has not connected to a cluster yet, and looking for one would take minutes where the last
    # one has died. So `web` checks the host of Serve again.
    running = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    server = _server(settings, running.http_config.host if running else "127.0.0.1")

    def web() -> FastAPI:
        """Make the web application in an ingress."""
        context = serve.get_replica_context()
        replicas = serve.get_deployment_handle(ModelReplica.__name__, context.app_name)
        running = _get_global_client()
        assert running is not None  # it runs this
        listening = replace(server, host=running.http_config.host)
        models = RemoteModels(replicas, Catalog(storage, found.name, settings.run))
        return make_app(models, listening, {"ingress": context.replica_id.unique_id})

    ingress = serve.deployment(
        name="Ingress",
        num_replicas=settings.num_ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=GRACE_S,
        health_check_period_s=HEALTH_PERIOD_S,
    )(serve.ingress(web)())
    print(f"serving {found.name} from {found.path}", flush=True)
    models = partial(open_models, storage, found.name, settings.run, settings.max_sequences, settings.max_models)
    return ingress.bind(_replicas(settings).bind(models))


def _replicas(settings: ServeArgs) -> serve.Deployment:
    """Return the deployment of the replicas. One generates a batch of requests, and may have a second one waiting."""
    router: Any = {"request_router_class": AffinityRouter, "request_routing_stats_period_s": HEALTH_PERIOD_S}
    gpus = settings.gpus_per_replica if settings.gpus_per_replica is not None else Cluster().gpus()
    return serve.deployment(
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": gpus},
        max_ongoing_requests=2 * settings.max_sequences,
        graceful_shutdown_timeout_s=GRACE_S,
        health_check_period_s=HEALTH_PERIOD_S,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.max_replicas, settings.min_replicas),
            target_ongoing_requests=max(1.0, 0.75 * settings.max_sequences),
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        ),
        request_router_config=RequestRouterConfig(**router),
    )(ModelReplica)


def _settings(args: dict[str, Any]) -> ServeArgs:
    try:
        return ServeArgs.model_validate(args)
    except ValidationError as e:
        unknown = f"no such setting; expected one of {', '.join(ServeArgs.model_fields)}"
        problems = [(x, unknown if x["type"] == "extra_forbidden" else x["msg"]) for x in e.errors()]
        wrong = "; ".join(f"{'.'.join(map(str, x['loc']))}={x['input']!r}: {problem}" for x, problem in problems)
        raise ValueError(f"wrong setting of the application: {wrong}") from None


def _server(settings: ServeArgs, host: str, port: int = 0) -> ServerSettings:
    return ServerSettings.from_environment(
        host=host,
        port=port,
        max_queued=settings.max_queued,
        requests_per_minute=settings.requests_per_minute,
        cors_origins=tuple(settings.cors_origins),
    )


def serve_on_ray(settings: dict[str, Any], host: str, port: int, cluster: Cluster) -> None:
    """Serve `build(settings)` on the Ray cluster, joined or started, until SIGINT or SIGTERM.

    A cluster that was joined keeps Ray Serve and its other applications. Without one the most replicas that there can
    be share out the CPUs of this machine, unless the settings say how many each of them has.
    """
    _server(_settings(settings), host, port)  # fail before Ray starts
    joined = ray.is_initialized() or (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    if not joined:
        settings = _shared_out(settings, os.cpu_count() or 1)
        port = _free_port(host, port)
        set_environment()
    cluster.join()  # serving only reads the storage
    host, port = _start_serve(host, port)
    serve.run(build(settings), name=APPLICATION)
    announce(_server(_settings(settings), host), port, _on_head(statistics_ports))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    if joined:
        serve.delete(APPLICATION)
    else:
        serve.shutdown()


def _shared_out(settings: dict[str, Any], num_cpus: int) -> dict[str, Any]:
    """Let as many replicas as there can be share out a machine's CPUs, unless the settings say how many each has.

    >>> _shared_out({"max_replicas": 3}, 8)
    {'cpus_per_replica': 2, 'max_replicas': 3}
    >>> _shared_out({"max_replicas": 3, "cpus_per_replica": 5}, 8)["cpus_per_replica"]
    5
    """
    return {"cpus_per_replica": max(1, num_cpus // _settings(settings).max_replicas), **settings}


def _start_serve(host: str, port: int) -> tuple[str, int]:
    """Start Ray Serve, or keep the one that the cluster runs; return the address that it listens on."""
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        return running.http_config.host, running.http_config.port
    # Ask first: Serve's proxies set SO_REUSEPORT, so two clusters on one machine would share the port silently.
    port = _on_head(_free_port, host, port)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S})
    return host, port


def _on_head(function: Callable[..., T], *args: Any) -> T:
    """Return what a function returns on the cluster's head. Raises what it raises."""
    task = ray.remote(function).options(num_cpus=0, resources={"node:__internal_head__": 0.001})
    try:
        result: T = ray.get(task.remote(*args))
    except ray.exceptions.RayTaskError as e:
        raise e.cause from None
    return result


def _free_port(host: str, port: int) -> int:
    with listen(host, port) as server:
        return int(server.getsockname()[1])

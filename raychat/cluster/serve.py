"""The Ray Serve application: an ingress that speaks HTTP, and model replicas that hold one engine each.

serve run serve_config.yaml                        on this machine
serve deploy serve_config.yaml                     on a running cluster
serve run raychat.cluster.serve:build run=tiny max_sequences=8
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator
from typing import Any, Literal

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raychat.cluster import Cluster
from raychat.runs import find_checkpoint
from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer
from raychat.serve.http import make_app
from raychat.serve.run import READY, listen
from raychat.serve.service import ChatService, card_of
from raychat.serve.types import ChatRequest, CompletionRequest, Delta, DetokenizeRequest, Failure, TokenizeRequest

APPLICATION = "raychat"  # its name on Ray Serve
REQUEST_TIMEOUT_S = 600.0  # of a whole answer
GRACE_S = 120.0  # for a replica that stops to finish its answers
HEALTH_PERIOD_S = 1.0  # Serve replaces a replica after three failed checks
QUEUE_PER_SEQUENCE = 8  # requests that may wait, per sequence of one replica; Serve refuses more of them, with 429


class ServeArgs(BaseModel):
    """The settings of `build`: `args` in serve_config.yaml, name=value behind `serve run ...:build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str | None = None  # None = the run that wrote a chat checkpoint last
    stage: Literal["rl", "sft", "mid"] | None = None  # None = the latest that the run has reached
    storage_path: str | None = None  # None = RAYCHAT_HOME or ~/.cache/raychat, where `build` runs
    max_sequences: int = Field(default=16, ge=1)  # that one replica generates at once
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    cpus_per_replica: float = Field(default=1, gt=0)  # also its threads
    gpus_per_replica: float | None = Field(default=None, ge=0)  # None = 1 where the cluster has GPUs, else 0


class ModelReplica:
    """A replica: holds one `ChatService` and forwards to it."""

    def __init__(self, path: str, card: ModelCard, max_sequences: int) -> None:
        self._service = ChatService.load(path, card, max_sequences)

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Delta | Failure, None]:
        return self._service.stream(request)

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        return await self._service.tokenize(request)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        return await self._service.detokenize(request)

    async def metrics(self) -> str:
        return await self._service.metrics()

    async def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises."""
        await self._service.check()


class RemoteService:
    """The model as the ingress sees it: a `ChatService` behind a Serve handle."""

    def __init__(self, model: DeploymentHandle, card: ModelCard) -> None:
        self._card = card
        self._model = model

    async def cards(self) -> list[ModelCard]:
        """Return the one model that is served."""
        return [self._card]

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        return await self._model.tokenize.remote(request)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        return await self._model.detokenize.remote(request)

    async def metrics(self) -> str:
        return await self._model.metrics.remote()

    async def check(self) -> None:
        """Raise RuntimeError when Serve knows no healthy replica. A request to one would wait behind the streams.

        A model that Serve has scaled down to no replica is healthy: the next request starts one.
        """
        status = await asyncio.to_thread(serve.status)
        model = status.applications[self._model.app_name].deployments[self._model.deployment_name]
        if model.status != "HEALTHY" and "RUNNING" not in model.replica_states:
            raise RuntimeError(f"no replica runs, the deployment is {model.status.value}. {model.message}")

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Delta | Failure, None]:
        answer: Any = self._model.options(stream=True).stream.remote(request)
        try:
            async for delta in answer:
                yield delta
        except BackPressureError:
            yield Failure(429, "too many requests are waiting; try again in a moment")
        except (ray.exceptions.RayActorError, DeploymentUnavailableError) as e:
            yield Failure(503, f"the model's replica is gone ({type(e).__name__}); try again in a moment")
        except ray.exceptions.RayTaskError as e:
            yield Failure(500, f"the model failed: {e.cause!r}")
        finally:
            answer.cancel()


def build(args: dict[str, Any]) -> Application:
    """Return the application for the checkpoint that `args` (see `ServeArgs`) select.

    `build` finds the checkpoint and hands its path to the replicas, whose machines must be able to read it. `serve run`
    and jobs/serve.py call it in the driver, `serve deploy` in a task of the cluster.
    """
    settings = _settings(args)
    found = find_checkpoint(Cluster(storage_path=settings.storage_path).storage(), settings.run, settings.stage)
    card = card_of(found)
    gpus = settings.gpus_per_replica if settings.gpus_per_replica is not None else Cluster().gpus()
    model = serve.deployment(
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": gpus},
        max_ongoing_requests=settings.max_sequences,
        max_queued_requests=QUEUE_PER_SEQUENCE * settings.max_sequences,
        graceful_shutdown_timeout_s=GRACE_S,
        health_check_period_s=HEALTH_PERIOD_S,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.max_replicas, settings.min_replicas),
            target_ongoing_requests=max(1.0, 0.75 * settings.max_sequences),
        ),
    )(ModelReplica)

    def web() -> FastAPI:
        """Make the web application in the ingress replica."""
        here = serve.get_replica_context()
        return make_app(RemoteService(serve.get_deployment_handle(ModelReplica.__name__, here.app_name), card))

    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=GRACE_S,
    )(serve.ingress(web)())
    print(f"serving {card.id} from {found.path}", flush=True)
    return ingress.bind(model.bind(found.path, card, settings.max_sequences))


def _settings(args: dict[str, Any]) -> ServeArgs:
    try:
        return ServeArgs.model_validate(args)
    except ValidationError as e:
        unknown = f"no such setting; expected one of {', '.join(ServeArgs.model_fields)}"
        problems = [(x, unknown if x["type"] == "extra_forbidden" else x["msg"]) for x in e.errors()]
        wrong = "; ".join(f"{'.'.join(map(str, x['loc']))}={x['input']!r}: {problem}" for x, problem in problems)
        raise ValueError(f"wrong setting of the application: {wrong}") from None


def serve_on_ray(settings: dict[str, Any], host: str, port: int, cluster: Cluster) -> None:
    """Serve `build(settings)` on the Ray cluster, joined or started, until SIGINT or SIGTERM.

    A cluster that was joined keeps Ray Serve and its other applications.
    """
    joined = ray.is_initialized() or (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    if not joined:
        port = _free_port(host, port)  # fail before Ray starts
    cluster.connect()
    host, port = _start_serve(host, port)
    serve.run(build(settings), name=APPLICATION)
    print(READY.format(host, port), flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    if joined:
        serve.delete(APPLICATION)
    else:
        serve.shutdown()


def _start_serve(host: str, port: int) -> tuple[str, int]:
    """Start Ray Serve, or keep the one that the cluster runs; return the address that it listens on."""
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        return running.http_config.host, running.http_config.port
    # Ask first: Serve's proxies set SO_REUSEPORT, so two clusters on one machine would share the port silently.
    on_head = ray.remote(_free_port).options(num_cpus=0, resources={"node:__internal_head__": 0.001})
    try:
        port = ray.get(on_head.remote(host, port))
    except ray.exceptions.RayTaskError as e:
        raise e.cause from None
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S})
    return host, port


def _free_port(host: str, port: int) -> int:
    with listen(host, port) as server:
        return int(server.getsockname()[1])

"""The Ray Serve application: a thin ingress that speaks HTTP, and model replicas that hold one engine each.

serve run serve_config.yaml                        on this machine
serve deploy serve_config.yaml                     on a running cluster
serve run raychat.cluster.serve:build run=tiny max_sequences=8
"""

import os
import signal
import threading
from collections.abc import AsyncGenerator
from typing import Any, Literal

import ray
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raychat.cluster import Cluster
from raychat.runs import find_checkpoint
from raychat.serve.http import make_app
from raychat.serve.service import ChatService, card_of
from raychat.serve.types import ChatRequest, Failure, ModelCard, Piece

APPLICATION = "raychat"  # its name on Ray Serve
REQUEST_TIMEOUT_S = 600.0  # of a whole answer
GRACE_S = 120.0  # a replica that is to go may finish its answers for so long
QUEUE_PER_SEQUENCE = 8  # requests that may wait for a replica, per sequence of one; more are turned away with 429


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


class Model:
    """A replica: holds one `ChatService` and forwards to it."""

    def __init__(self, path: str, card: ModelCard, max_sequences: int) -> None:
        self._service = ChatService.load(path, card, max_sequences)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Piece | Failure, None]:
        async for piece in self._service.stream(request):
            yield piece

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica where this raises, and through the handle by /health."""
        await self._service.check()


class RemoteService:
    """The model as the ingress sees it: a `ChatService` in another process."""

    def __init__(self, model: DeploymentHandle, card: ModelCard) -> None:
        self.card = card
        self._model = model

    async def check(self) -> None:
        await self._model.check_health.remote()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Piece | Failure, None]:
        answer: Any = self._model.options(stream=True).stream.remote(request)
        try:
            async for piece in answer:
                yield piece
        except BackPressureError:
            yield Failure(429, "too many requests are waiting; try again in a moment")
        except (ray.exceptions.RayActorError, DeploymentUnavailableError) as e:
            yield Failure(503, f"the model's replica is gone ({type(e).__name__}); try again in a moment")
        except ray.exceptions.RayTaskError as e:
            yield Failure(500, f"the model failed: {e.cause!r}")
        finally:
            answer.cancel()


def build(args: dict[str, Any]) -> Application:
    """Return the application for the checkpoint that `args` (see `ServeArgs`) ask for.

    The checkpoint is looked up here and replicas get its path: by `serve run` and jobs/serve.py in the driver, by
    `serve deploy` in a task of the cluster. The replicas' machines must be able to read that path.

    Raises:
        ValueError: a setting that is unknown or wrong, or there is no such checkpoint.
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
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.max_replicas, settings.min_replicas),
            target_ongoing_requests=max(1.0, 0.75 * settings.max_sequences),
        ),
    )(Model)

    def web() -> FastAPI:
        """Called in the ingress replica."""
        here = serve.get_replica_context()
        return make_app(RemoteService(serve.get_deployment_handle(Model.__name__, here.app_name), card))

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
        wrong = "; ".join(f"{'.'.join(map(str, x['loc']))}={x['input']!r}: {_what_is_wrong(x)}" for x in e.errors())
        raise ValueError(f"wrong setting of the application: {wrong}") from None


def _what_is_wrong(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"no such setting; expected one of {', '.join(ServeArgs.model_fields)}"
    return error["msg"]


def serve_on_ray(settings: dict[str, Any], host: str, port: int, cluster: Cluster) -> None:
    """Serve `build(settings)` on the Ray cluster, joined or started, until SIGINT or SIGTERM.

    A cluster that was joined keeps Ray Serve and its other applications.
    """
    joined = ray.is_initialized() or (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    cluster.connect()
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

"""The two ends of Ray Serve's wire: replicas that hold models, and the models as an ingress sees them."""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import ray
from grpc import RpcError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from raychat.engine.request import EngineStats
from raychat.serve.answers import DetokenizeAnswer, ModelCard, TokenizeAnswer
from raychat.serve.catalog import Catalog
from raychat.serve.metrics import engine_metrics
from raychat.serve.models import Models
from raychat.serve.types import ChatRequest, CompletionRequest, Delta, DetokenizeRequest, Failure, TokenizeRequest

ATTEMPTS = 4  # at a request whose replicas die
AFFINITY_LENGTH = 500  # characters or tokens at a prompt's beginning that decide which replica gets it

_DEATHS = (ray.exceptions.RayActorError, DeploymentUnavailableError, RpcError)  # as Serve's two transports report them
_PICKLED: Any = {"request_serialization": "pickle", "response_serialization": "pickle"}  # faster than cloudpickle

log = logging.getLogger(__name__)


class ModelReplica:
    """A replica: holds `Models` and forwards to it."""

    async def __init__(self, build: Callable[[], Models]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._models = build()
        try:
            await self._models.preload()
        except ValueError as e:  # the other models can be served
            log.error("the default model is not there: %s", e)

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncIterator[list[Delta | Failure]]:
        """Yield the answer in lists: as it grows, or in one at its end when the client does not stream it."""
        held: list[Delta | Failure] = []
        began = 0.0
        async with contextlib.aclosing(self._models.stream(request)) as deltas:
            async for delta in deltas:
                began = began or time.perf_counter()
                held.append(delta)
                if request.stream:
                    yield held
                    held = []
        if held:
            if isinstance(held[0], Delta):
                held[0] = held[0]._replace(held_s=time.perf_counter() - began)
            yield held

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        return await self._models.tokenize(request)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        return await self._models.detokenize(request)

    async def stats(self) -> tuple[str, dict[str, EngineStats]]:
        """Return this replica's id, and the statistics of its engines by the model's id."""
        return serve.get_replica_context().replica_id.unique_id, await self._models.stats()

    async def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises."""
        await self._models.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """Serve calls this and shows the answer to `AffinityRouter`."""
        return {"models": self._models.loaded()}


class RemoteModels:
    """The models as an ingress sees them: `Models` in replicas, behind a Serve handle.

    A request whose replica dies is sent to another one, unless the client has got the beginning of its answer.
    """

    def __init__(self, replicas: DeploymentHandle, catalog: Catalog) -> None:
        self._replicas, self._catalog = replicas, catalog

    async def cards(self) -> list[ModelCard]:
        """Return all models that can be asked for, the default first."""
        return await self._catalog.cards()

    async def stream(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Delta | Failure, None]:
        """Yield the answer; closing the iterator cancels the request in its replica."""
        for attempt in range(1, ATTEMPTS + 1):
            begun = False
            try:
                async with contextlib.aclosing(self._lists(request)) as lists:
                    async for deltas in lists:
                        for delta in deltas:
                            begun = True
                            yield delta
                return
            except _DEATHS as e:
                if begun or attempt == ATTEMPTS:
                    yield _gone(e)
                    return
                log.warning("a replica has died (%s); its request goes to another one", type(e).__name__)
            except ray.exceptions.RayTaskError as e:
                yield Failure(500, f"the model failed: {e.cause!r}")
                return

    async def tokenize(self, request: TokenizeRequest) -> TokenizeAnswer | Failure:
        """Return a prompt or a conversation as token ids."""
        answer: TokenizeAnswer | Failure = await self._call("tokenize", request)
        return answer

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeAnswer | Failure:
        """Return token ids as text."""
        answer: DetokenizeAnswer | Failure = await self._call("detokenize", request)
        return answer

    async def metrics(self) -> str:
        """Return the statistics of all replicas' engines as Prometheus reads them."""
        answers = await self._replicas.broadcast("stats").results_async(return_exceptions=True)
        replicas = [answer for answer in answers if not isinstance(answer, BaseException)]
        return engine_metrics(
            [({"model": id, "replica": name}, stats) for name, by_id in replicas for id, stats in by_id.items()]
        )

    async def check(self) -> None:
        """Raise RuntimeError when Serve knows no healthy replica. A request to one would wait behind the streams.

        Models that Serve has scaled down to no replica are healthy: the next request starts one.
        """
        client = _get_global_client()
        assert client is not None  # Serve runs this
        overview = await asyncio.to_thread(client.get_serve_status, self._replicas.app_name)
        deployment = overview.get_deployment_status(self._replicas.deployment_name)
        if deployment is not None and deployment.status == "HEALTHY":
            return  # without Serve's `status`, which pickles the router here and in the controller: 30 ms of each
        status = await asyncio.to_thread(serve.status)
        models = status.applications[self._replicas.app_name].deployments[self._replicas.deployment_name]
        if models.status != "HEALTHY" and "RUNNING" not in models.replica_states:
            raise RuntimeError(f"no replica runs, the deployment is {models.status.value}. {models.message}")

    async def _lists(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[list[Delta | Failure], None]:
        handle = self._handle(request.model, beginning_of(request)).options(stream=True, **_PICKLED)
        answer: Any = handle.stream.remote(request)
        try:
            async for deltas in answer:
                yield deltas
        finally:
            answer.cancel()

    async def _call(self, method: str, request: TokenizeRequest | DetokenizeRequest) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return await getattr(self._handle(request.model, ""), method).remote(request)
            except _DEATHS as e:
                failure = _gone(e)
        return failure

    def _handle(self, model: str | None, beginning: str) -> DeploymentHandle:
        """Return a handle that tells `AffinityRouter` what matters for the choice of a replica."""
        return self._replicas.options(multiplexed_model_id=self._catalog.id(model), session_id=beginning)


class AffinityRouter(RequestRouter):
    """Choose a replica that has a request's model and, by a hash, the one that has seen the prompt's beginning.

    Serve takes the less busy one of the first list that this returns; of equally busy ones the first, which is the same
    for every prompt with that beginning. While all of a list are full, it goes on to the next list.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # else Serve tries full replicas anew without a pause
        model, beginning = pending_request.metadata.multiplexed_model_id, pending_request.metadata.session_id

        def order(key: str, replicas: list[RunningReplica]) -> list[RunningReplica]:
            return sorted(replicas, key=lambda r: _hash(key, r.replica_id.unique_id))

        loaded = [r for r in candidate_replicas if model in r.routing_stats.get("models", ())]
        others = [r for r in candidate_replicas if r not in loaded]
        first = order(beginning, loaded)
        return [ranks for ranks in (first[:2], first[2:], order(model, others)) if ranks]


def beginning_of(request: ChatRequest | CompletionRequest) -> str:
    """Return a hash of what a request begins with, as far as all turns of a chat and few-shot prompts share it."""
    if isinstance(request, ChatRequest):
        asked = itertools.takewhile(lambda message: message.role != "assistant", request.messages[:2])
        texts = [message.text[:AFFINITY_LENGTH] for message in asked]
    else:
        texts = [str(request.prompts[0][:AFFINITY_LENGTH])]
    return str(_hash(*texts))


def _hash(*texts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _gone(error: BaseException) -> Failure:
    return Failure(503, f"the model's replica is gone ({type(error).__name__}); try again in a moment")

"""What the server and its engines do, as Prometheus reads it."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raychat.engine.request import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)  # seconds
_TPOT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # seconds

# Of each number in EngineStats: whether it only grows, and what it is.
_ENGINE: dict[str, tuple[bool, str]] = {
    "running": (False, "Requests that the engine runs"),
    "waiting": (False, "Requests that wait for a slot"),
    "cached_tokens": (False, "Tokens that the cache holds"),
    "cache_tokens": (False, "Tokens that the cache has room for"),
    "prompt_tokens": (True, "Tokens of the prompts that have begun"),
    "reused_tokens": (True, "Tokens of prompts that were found in the cache"),
    "generated_tokens": (True, "Tokens that were generated"),
    "preemptions": (True, "Requests that lost their place for want of memory, and began anew"),
}


class _Engines(Collector):
    """Engine statistics with their labels, as metrics."""

    def __init__(self, engines: Sequence[tuple[Mapping[str, str], EngineStats]]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        for name, (grows, text) in _ENGINE.items():
            labels = sorted({label for found, _ in self._engines for label in found})
            metric = (CounterMetricFamily if grows else GaugeMetricFamily)(f"raychat_{name}", text, labels=labels)
            for found, stats in self._engines:
                metric.add_metric([found.get(label, "") for label in labels], getattr(stats, name))
            yield metric


def engine_metrics(engines: Sequence[tuple[Mapping[str, str], EngineStats]]) -> str:
    """Return the statistics of engines in Prometheus's text format; each comes with labels, such as its model."""
    registry = CollectorRegistry()
    registry.register(_Engines(engines))
    return generate_latest(registry).decode()


class ServerMetrics:
    """What one HTTP server measures: answers, errors, and how long clients wait for tokens.

    Args:
        labels: of everything, so that servers that answer at one address are told apart.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = labels or {}
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "raychat_requests", "Answers by HTTP status", ["path", "status"], registry=self._registry
        )
        self.queued = Gauge("raychat_queued", "Answers that wait for their first token", registry=self._registry)
        self.broken = Counter("raychat_broken_answers", "Answers that broke off", registry=self._registry)
        self._ttft = Histogram(
            "raychat_time_to_first_token_seconds",
            "From a request to the first token of its answer",
            buckets=_TTFT_BUCKETS,
            registry=self._registry,
        )
        self._tpot = Histogram(
            "raychat_time_per_output_token_seconds",
            "Between two tokens of an answer, on average",
            buckets=_TPOT_BUCKETS,
            registry=self._registry,
        )

    def answered(self, path: str, status: int) -> None:
        """Count an answer. path: the route's, so that there are few of them."""
        self._requests.labels(path, str(status)).inc()

    def generated(self, ttft_s: float, rest_s: float, tokens: int) -> None:
        """Record a finished answer: seconds to its first token, from there to the last one, and its tokens."""
        self._ttft.observe(ttft_s)
        if tokens > 1:
            self._tpot.observe(rest_s / (tokens - 1))

    def text(self) -> str:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self).decode()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their labels, as `generate_latest` asks for them."""
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in metric.samples]
            yield metric


class CountAnswers:
    """Middleware that counts every answer by its route and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500  # of a request that raises before it answers

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if scope["type"] == "http":
                self._metrics.answered(getattr(scope.get("route"), "path", "other"), status)

"""Prometheus metrics: what the server observes itself, and what it reads from the engines at each scrape.

Each app has its own registry, so that two apps in one process do not share metrics. Values are observed on
the event loop. Label values come only from the config and from fixed sets, so their number is limited.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vinfer.engine.request import EngineStats
from vinfer.server.metrics_text import metrics_text
from vinfer.server.model_table import ModelTable, ServedModel
from vinfer.version import __version__

# Names and buckets are vLLM's, so that its dashboards work after a change of prefix.
E2E_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)

LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Further API keys are counted together; a file of keys that changes often could add labels for ever.
MAX_KEY_LABELS = 256

_ENGINE_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_requests_running", "Requests that hold a slot.", lambda s: s.num_requests_running),
    ("num_requests_waiting", "Requests waiting for a slot.", lambda s: s.num_requests_waiting),
    ("num_slots", "Requests that can be decoded together.", lambda s: s.num_slots),
    (
        "kv_cache_usage_perc",
        "Fraction of the KV cache that requests hold, 0 to 1.",
        lambda s: s.kv_cache_usage_fraction,
    ),
    (
        "mm_cache_usage_perc",
        "Fraction of the image feature cache in use, 0 to 1.",
        lambda s: s.mm_cache_usage_fraction,
    ),
)
_MODEL_GAUGES: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    (
        "engine_step_seconds",
        "Age of the engine's current step; 0 without work.",
        lambda m: m.engine.step_seconds,
    ),
    ("engine_up", "1 while the engine works; 0 once it has died.", lambda m: float(m.engine.is_alive)),
    ("num_grammars_waiting", "Grammars being compiled or waiting for it.", lambda m: m.grammars.num_waiting),
)
_ENGINE_COUNTERS: tuple[tuple[str, str], ...] = (
    ("prompt_tokens", "Prompt tokens prefilled."),
    ("generation_tokens", "Tokens generated."),
    ("num_prefill_dispatches", "Prefill programs dispatched."),
    ("num_decode_dispatches", "Decode programs dispatched."),
    (
        "num_overlapped_dispatches",
        "Dispatches enqueued before the tokens of the previous dispatch had been read.",
    ),
    ("num_preemptions", "Requests that gave their part of the KV cache back before their end."),
    ("prefix_cache_queries", "Prompt tokens of requests that look for pages of other requests."),
    ("prefix_cache_hits", "Prompt tokens that were found in pages of other requests."),
    ("spec_decode_num_drafts", "Drafts verified."),
    ("spec_decode_num_draft_tokens", "Tokens of drafts verified."),
    ("spec_decode_num_accepted_tokens", "Tokens of drafts that became part of an answer."),
    ("num_encode_dispatches", "Image encoder programs dispatched."),
    ("num_images_encoded", "Images encoded."),
    ("mm_cache_queries", "Images in requests."),
    ("mm_cache_hits", "Images in requests whose features were already cached."),
)
"""Names and descriptions of the counters of `EngineStats`, whose names end with `_total`."""


class ServerMetrics:
    """The metrics of one app.

    Args:
        compile_count: returns how many programs were compiled after the server was ready; must stay 0.
        names: `server.metrics_names`.
    """

    def __init__(
        self, models: ModelTable, compile_count: Callable[[], int], names: Sequence[str] = ("vinfer",)
    ) -> None:
        self._names = tuple(names)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_EngineCollector(models, compile_count))

        def histogram(name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(
                f"vinfer:{name}",
                documentation,
                ["model_name"],
                buckets=tuple(buckets),
                registry=self._registry,
            )

        self._ttft = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", TTFT_BUCKETS
        )
        self._itl = histogram("inter_token_latency_seconds", "Time between two tokens.", ITL_BUCKETS)
        self._queue = histogram(
            "request_queue_time_seconds", "From the request's arrival to a slot.", E2E_BUCKETS
        )
        self._e2e = histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its last token.", E2E_BUCKETS
        )
        self._success = Counter(
            "vinfer:request_success",
            "Completions that finished normally.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._requests = Counter(
            "vinfer:requests",
            "HTTP requests to /v1 routes by outcome.",
            ["model_name", "route", "outcome"],
            registry=self._registry,
        )
        self._lag = Histogram(
            "vinfer:event_loop_lag_seconds",
            "How much later than planned the event loop ran, ten times a second.",
            buckets=LAG_BUCKETS,
            registry=self._registry,
        )

        # Without a label: clients choose the keys.
        self._ignored_keys = Counter(
            "vinfer:ignored_keys",
            "Unknown keys in conversations that had no effect.",
            registry=self._registry,
        )

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"vinfer:{name}", documentation, registry=self._registry)

        self._connections = gauge("http_connections", "Open connections.")
        self._preparing = gauge("preparing_bytes", "Bytes of request bodies that are read and prepared.")
        self._worker_calls = gauge("worker_calls", "Calls that worker threads run, or that wait for one.")
        build = Gauge(
            "vinfer:build_info", "What runs here.", ["version", "jax_version"], registry=self._registry
        )
        build.labels(__version__, _version_of("jax")).set(1)
        self._keys: set[str] = set()

        def of_key(name: str, documentation: str) -> Counter:
            return Counter(f"vinfer:{name}", documentation, ["key"], registry=self._registry)

        self._key_requests = of_key("key_requests", "HTTP requests to /v1 routes by API key.")
        self._key_prompt_tokens = of_key("key_prompt_tokens", "Prompt tokens of requests by API key.")
        self._key_generation_tokens = of_key("key_generation_tokens", "Tokens generated by API key.")

    def count_ignored_keys(self, num: int) -> None:
        """Count unknown keys in a conversation that had no effect."""
        self._ignored_keys.inc(num)

    def observe_queue(self, model_name: str, seconds: float) -> None:
        """Observe a completion's time from arrival to a slot."""
        self._queue.labels(model_name).observe(seconds)

    def observe_first_token(self, model_name: str, seconds: float) -> None:
        """Observe a completion's time from arrival to its first token."""
        self._ttft.labels(model_name).observe(seconds)

    def observe_tokens(self, model_name: str, num_tokens: int, seconds: float) -> None:
        """Observe tokens that arrived together, `seconds` after the previous ones."""
        inter_token = self._itl.labels(model_name)
        for _ in range(num_tokens):
            inter_token.observe(seconds / num_tokens)

    def observe_finish(self, model_name: str, finish_reason: str, seconds: float) -> None:
        """Count a completion that finished normally, `seconds` after its arrival."""
        self._e2e.labels(model_name).observe(seconds)
        self._success.labels(model_name, finish_reason).inc()

    def count_request(self, model_name: str, route: str, outcome: str) -> None:
        """Count an HTTP request; `model_name` is empty if the request never reached a model."""
        self._requests.labels(model_name, route, outcome).inc()

    def count_key(self, key_name: str, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """Count an HTTP request with an API key, and what it used."""
        if len(self._keys) < MAX_KEY_LABELS:
            self._keys.add(key_name)
        key = key_name if key_name in self._keys else "other"
        self._key_requests.labels(key).inc()
        self._key_prompt_tokens.labels(key).inc(num_prompt_tokens)
        self._key_generation_tokens.labels(key).inc(num_completion_tokens)

    def observe_loop(
        self, lag_seconds: float, *, num_connections: int, preparing_bytes: int, num_worker_calls: int
    ) -> None:
        """Observe the event loop and what hangs on it; called ten times a second."""
        self._lag.observe(max(lag_seconds, 0.0))
        self._connections.set(num_connections)
        self._preparing.set(preparing_bytes)
        self._worker_calls.set(num_worker_calls)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return metrics_text(self._registry, self._names)


class _EngineCollector(Collector):
    """Reads the engines' stats and the number of compiles at each scrape."""

    def __init__(self, models: ModelTable, compile_count: Callable[[], int]) -> None:
        self._models = models
        self._compile_count = compile_count

    def collect(self) -> Iterator[Metric]:
        served = self._models.served_models
        stats = [(model.name, model.engine.stats()) for model in served]
        for name, documentation, value in _ENGINE_GAUGES:
            yield _by_model(GaugeMetricFamily, name, documentation, [(n, value(s)) for n, s in stats])
        for name, documentation in _ENGINE_COUNTERS:
            totals = [(n, getattr(s, f"{name}_total")) for n, s in stats]
            yield _by_model(CounterMetricFamily, name, documentation, totals)
        for name, documentation, of_model in _MODEL_GAUGES:
            values = [(model.name, of_model(model)) for model in served]
            if name == "engine_up":
                values += [(lost, 0.0) for lost in self._models.lost]
            yield _by_model(GaugeMetricFamily, name, documentation, values)
        about = "Engines started anew after one had died."
        yield _by_model(CounterMetricFamily, "model_restarts", about, self._models.num_restarts.items())
        yield CounterMetricFamily(
            "vinfer:post_ready_compiles",
            "Programs compiled after the server was ready, but for models that were loaded later.",
            value=self._compile_count(),
        )


def _by_model(
    family: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    documentation: str,
    values: Iterable[tuple[str, float]],
) -> Metric:
    metric = family(f"vinfer:{name}", documentation, labels=["model_name"])
    for model_name, value in values:
        metric.add_metric([model_name], value)
    return metric


def _version_of(package: str) -> str:
    """Return the version of an installed package, which is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

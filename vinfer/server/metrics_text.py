"""Writes metrics in Prometheus's text format, under our names, those of vLLM, or both.

Pure function of a registry.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_OURS, _THEIRS = "vinfer:", "vllm:"
VLLM_METRICS = frozenset(
    {
        "e2e_request_latency_seconds",
        "generation_tokens",
        "inter_token_latency_seconds",
        "kv_cache_usage_perc",
        "mm_cache_hits",
        "mm_cache_queries",
        "num_preemptions",
        "num_requests_running",
        "num_requests_waiting",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "prompt_tokens",
        "request_queue_time_seconds",
        "request_success",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_drafts",
        "time_to_first_token_seconds",
    }
)
"""The metrics that vLLM has, with the same meaning and labels."""


def metrics_text(registry: CollectorRegistry, names: Sequence[str]) -> bytes:
    """Return the metrics of a registry.

    Args:
        names: `vinfer` for all of ours, `vllm` for those that vLLM has too.
    """
    text: bytes = generate_latest(_Renamed(registry, names))
    return text


class _Renamed(Collector):
    """The metrics of a registry under the names that are wanted; others, such as process_*, as they are."""

    def __init__(self, registry: CollectorRegistry, names: Sequence[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            is_ours = metric.name.startswith(_OURS)
            if not is_ours or "vinfer" in self._names:
                yield _renamed(metric, _OURS)
            if is_ours and "vllm" in self._names and metric.name.removeprefix(_OURS) in VLLM_METRICS:
                yield _renamed(metric, _THEIRS)


def _renamed(metric: Metric, prefix: str) -> Metric:
    """Return a copy with another prefix, and without the times at which its series were created."""
    renamed = copy.copy(metric)
    renamed.name = metric.name.replace(_OURS, prefix, 1)
    renamed.samples = [
        sample._replace(name=sample.name.replace(_OURS, prefix, 1))
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]
    return renamed

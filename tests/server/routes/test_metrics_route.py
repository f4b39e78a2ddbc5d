"""The metrics of a scrape: they parse, they count, and the number of their labels is limited."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, Start, wait_until

CHAT = "/v1/chat/completions"


def scrape(server: RunningServer) -> dict[tuple[str, frozenset[Any]], float]:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics(start: Start) -> None:
    with start() as server:
        server.chat(max_tokens=4)
        server.chat(max_tokens=4, stream=True, n=2)
        server.chat(temperature=-1)
        server.chat(model="unknown-" + "x" * 50)
        server.engine.queue_full = True
        server.chat()
        # Requests are counted after the client gets its answer.
        succeeded = ("vinfer:requests_total", frozenset({"fake", CHAT, "success"}))
        wait_until(lambda: scrape(server).get(succeeded) == 2)
        wait_until(
            lambda: ("vinfer:requests_total", frozenset({"fake", CHAT, "queue_full"})) in scrape(server)
        )
        found = scrape(server)

    def value(name: str, *labels: str) -> float:
        return found[name, frozenset(labels)]

    assert value("vinfer:requests_total", "fake", CHAT, "success") == 2
    assert value("vinfer:requests_total", "", CHAT, "refused") == 2
    assert value("vinfer:requests_total", "fake", CHAT, "queue_full") == 1
    assert value("vinfer:request_success_total", "fake", "length") == 3
    assert value("vinfer:time_to_first_token_seconds_count", "fake") == 3
    assert value("vinfer:inter_token_latency_seconds_count", "fake") == 9
    assert value("vinfer:e2e_request_latency_seconds_count", "fake") == 3
    assert value("vinfer:generation_tokens_total", "fake") == 12
    assert value("vinfer:num_overlapped_dispatches_total", "fake") == 7
    assert value("vinfer:kv_cache_usage_perc", "fake") == 0.25
    assert value("vinfer:num_preemptions_total", "fake") == 2
    assert value("vinfer:prefix_cache_queries_total", "fake") == 40
    assert value("vinfer:prefix_cache_hits_total", "fake") == 30
    assert value("vinfer:post_ready_compiles_total") == 0
    assert not any("unknown" in label for _, labels in found for label in labels)


def test_a_client_that_leaves_is_counted(start: Start) -> None:
    with start() as server:
        server.engine.is_stuck = True
        with server.http.stream(
            "POST", "/v1/completions", json={"model": "fake", "prompt": [4], "stream": True}
        ):
            server.engine.wait_until_submitted(1)
        server.engine.wait_until_cancelled(1)
        aborted = ("vinfer:requests_total", frozenset({"fake", "/v1/completions", "aborted"}))
        wait_until(lambda: scrape(server).get(aborted) == 1)


def test_metrics_can_be_left_out(start: Start) -> None:
    with start(metrics=False) as server:
        assert server.http.get("/metrics").status_code == 404
        assert server.http.get("/version").json()["version"]

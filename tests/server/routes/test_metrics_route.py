"""The metrics of a scrape: they parse, they count, and the number of their labels is limited."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from contract import HI
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, Start, wait_until

import vinfer
from vinfer.server.metrics import MAX_KEY_LABELS, ServerMetrics
from vinfer.server.metrics_text import VLLM_METRICS
from vinfer.server.model_table import ModelTable

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
    assert value("vinfer:spec_decode_num_drafts_total", "fake") == 5
    assert value("vinfer:spec_decode_num_draft_tokens_total", "fake") == 20
    assert value("vinfer:spec_decode_num_accepted_tokens_total", "fake") == 11
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


def test_refusals_of_the_gate_are_counted_with_their_route(start: Start, tmp_path: Path) -> None:
    """They were missing, and logged as route `other`."""
    keys = tmp_path / "keys"
    keys.write_text("a-key name=someone\nother-key\n", encoding="utf-8")
    keys.chmod(0o600)
    with start(api_keys_file=keys) as server:
        server.chat()
        assert server.http.get("/v1/models/some/thing").status_code == 401
        assert server.http.delete("/v1/responses").status_code == 401
        assert server.http.get("/v1/nothing").status_code == 401
        server.http.headers["authorization"] = "Bearer a-key"
        server.complete(prompt=[4, 5], max_tokens=3)
        unauthorized = {
            ("vinfer:requests_total", frozenset({"", route, "unauthorized"}))
            for route in (CHAT, "/v1/models/{id:path}", "/v1/responses")
        }
        unavailable = ("vinfer:requests_total", frozenset({"", "/v1/completions", "unavailable"}))
        server.engine.is_stuck = True
        # Something has to run, or a server that drains ends at once.
        with server.http.stream("POST", CHAT, json={"model": "fake", "messages": HI, "stream": True}):
            server.models.drain()
            assert server.complete().status_code == 503
            wait_until(lambda: {*unauthorized, unavailable} <= set(scrape(server)))
            found = scrape(server)
    assert not any("nothing" in label for _, labels in found for label in labels)
    someone = frozenset({"someone"})
    assert found["vinfer:key_requests_total", someone] == 1
    assert found["vinfer:key_prompt_tokens_total", someone] == 2
    assert found["vinfer:key_generation_tokens_total", someone] == 3
    assert not any("a-key" in label for _, labels in found for label in labels)


def test_the_number_of_keys_in_metrics_is_limited(start: Start) -> None:
    with start() as server:
        metrics = server.app.state.services.metrics
        for place in range(MAX_KEY_LABELS + 50):
            metrics.count_key(f"key-{place}", 1, 1)
        found = {
            labels: value for (name, labels), value in scrape(server).items() if "key_requests_total" in name
        }
    assert len(found) == MAX_KEY_LABELS + 1
    assert found[frozenset({"other"})] == 50


def test_what_an_operator_needs(start: Start) -> None:
    with start() as server:
        server.engine.step_seconds = 7.5
        wait_until(lambda: scrape(server)["vinfer:http_connections", frozenset()] >= 1)
        found = scrape(server)
        names = {name for name, _ in found}
        assert {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"} <= names
        assert "python_info" in names
        assert found["vinfer:event_loop_lag_seconds_count", frozenset()] > 0
        assert found["vinfer:engine_step_seconds", frozenset({"fake"})] == 7.5
        assert found["vinfer:engine_up", frozenset({"fake"})] == 1
        assert ("vinfer:num_grammars_waiting", frozenset({"fake"})) in found
        assert found["vinfer:preparing_bytes", frozenset()] == 0
        assert found["vinfer:worker_calls", frozenset()] == 0
        build = [labels for name, labels in found if name == "vinfer:build_info"]
        assert vinfer.__version__ in build[0]


@pytest.mark.parametrize("names", [("vinfer",), ("vllm",), ("vinfer", "vllm")], ids=str)
def test_metrics_have_the_names_that_were_asked_for(start: Start, names: tuple[str, ...]) -> None:
    with start(metrics_names=names) as server:
        server.chat(max_tokens=4)
        found = scrape(server)
    prefixes = {name.partition(":")[0] for name, _ in found if ":" in name}
    assert prefixes == set(names)
    if "vllm" in names:
        assert found["vllm:num_requests_waiting", frozenset({"fake"})] == 0
        assert found["vllm:kv_cache_usage_perc", frozenset({"fake"})] == 0.25
        assert found["vllm:time_to_first_token_seconds_count", frozenset({"fake"})] == 1
        assert {name for name, _ in found if name.endswith("_bucket") and name.startswith("vllm:")}
        # vLLM has no such metric.
        assert not any(name.startswith("vllm:engine_step") for name, _ in found)
    if len(names) == 2:
        theirs = {name.removeprefix("vllm:") for name, _ in found if name.startswith("vllm:")}
        ours = {name.removeprefix("vinfer:") for name, _ in found if name.startswith("vinfer:")}
        assert theirs < ours


def test_every_name_of_vllm_is_one_of_ours() -> None:
    metrics = ServerMetrics(ModelTable([]), lambda: 0)
    written = set(re.findall(r"^# TYPE vinfer:(\S+) ", metrics.render().decode(), re.MULTILINE))
    assert written | {name.removesuffix("_total") for name in written} >= VLLM_METRICS


def test_a_refused_prompt_has_used_nothing(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key name=someone\n", encoding="utf-8")
    keys.chmod(0o600)
    with start(api_keys_file=keys) as server:
        server.http.headers["authorization"] = "Bearer a-key"
        server.engine.queue_full = True
        assert server.chat().status_code == 429
        someone = frozenset({"someone"})
        wait_until(lambda: ("vinfer:key_requests_total", someone) in scrape(server))
        assert scrape(server)["vinfer:key_prompt_tokens_total", someone] == 0

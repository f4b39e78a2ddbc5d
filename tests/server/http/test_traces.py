"""OpenTelemetry traces: what a request leaves, whose child it is, and that a real receiver understands it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from running_server import RunningServer, Start, wait_until

from vinfer.config import ServerConfig
from vinfer.errors import ConfigError
from vinfer.server.app import create_app
from vinfer.server.model_table import ModelTable

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Memory(SpanExporter):
    """Keeps what it is given; the SDK's own one cannot wait."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Traced:
    def __init__(self, server: RunningServer, memory: Memory) -> None:
        self.server, self.memory = server, memory

    def spans(self, num: int) -> dict[str, ReadableSpan]:
        """Wait for so many spans, and return them by name."""
        wait_until(lambda: len(self.memory.spans) >= num)
        assert len(self.memory.spans) == num
        return {span.name: span for span in self.memory.spans}

    def only_last(self) -> None:
        """Check that nothing was recorded before a request that is sent now."""
        assert self.server.http.get("/version").status_code == 200
        assert self.spans(1).keys() == {"GET /version"}


@pytest.fixture
def traced(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    memory = Memory()
    monkeypatch.setattr("vinfer.server.http.traces.OTLPSpanExporter", lambda endpoint, timeout: memory)
    # Spans are sent every so many milliseconds, and in bundles of the order in which they ended.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with start(traces_endpoint="http://127.0.0.1:4318/v1/traces") as server:
        yield Traced(server, memory)


def test_a_request_is_a_span_with_its_phases_inside(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    body = {"model": "fake", "prompt": [4, 5], "max_tokens": 3}
    traced.server.engine.seconds_per_event = 0.02
    assert traced.server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    spans = traced.spans(4)
    assert spans.keys() == {"POST /v1/completions", "queue", "prefill", "decode"}
    request = spans["POST /v1/completions"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "vinfer.request_id": "mine",
        "vinfer.key": "",
        "gen_ai.request.model": "fake",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
    }
    assert request.status.is_unset
    assert request.resource.attributes["service.name"] == "vinfer"
    phases = [spans[name] for name in ("queue", "prefill", "decode")]
    assert {span.parent.span_id for span in phases} == {request.context.span_id}
    # One after the other, from the arrival to the end.
    ends = [request.start_time, *(span.end_time for span in phases)]
    assert [span.start_time for span in phases] == ends[:-1]
    assert ends[-1] == request.end_time
    assert ends == sorted(ends)
    # Two events of 20 ms follow the first token.
    assert phases[2].end_time - phases[2].start_time >= 20e6
    assert f"trace_id={TRACE}" in caplog.text


def test_without_a_parent_it_is_a_trace_of_its_own(traced: Traced) -> None:
    assert traced.server.chat(stream=True).status_code == 200
    request = traced.spans(4)["POST /v1/chat/completions"]
    assert request.parent is None
    assert request.context.trace_id != 0


@pytest.mark.parametrize("sent", ["nonsense", "00-0-0-01", "x" * 5000, "\xff"])
def test_a_wrong_parent_is_ignored(traced: Traced, sent: str) -> None:
    body = {"model": "fake", "prompt": [4], "max_tokens": 1}
    headers = {"traceparent": sent.encode("latin-1")}
    assert traced.server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert traced.spans(4)["POST /v1/completions"].parent is None


def test_a_parent_that_is_not_sampled_is_respected(traced: Traced) -> None:
    body = {"model": "fake", "prompt": [4], "max_tokens": 1}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    traced.only_last()


def test_refused_and_failed_requests(traced: Traced) -> None:
    assert traced.server.chat(temperature=9).status_code == 400
    refused = traced.spans(1)["POST /v1/chat/completions"]
    assert refused.status.is_unset
    traced.server.engine.failure = RuntimeError("boom")
    traced.server.engine.fail_after_tokens = 0
    assert traced.server.complete().status_code == 500
    failed = traced.spans(2)["POST /v1/completions"]
    assert not failed.status.is_ok
    assert not failed.status.is_unset
    # No text of the error, which may hold a prompt.
    assert not failed.events
    assert failed.status.description is None


def test_probes_leave_nothing(traced: Traced) -> None:
    for path in ("/liveness", "/readiness", "/health"):
        traced.server.http.get(path)
    traced.only_last()


class Receiver(BaseHTTPRequestHandler):
    """Understands OTLP over HTTP, with the types of its own specification."""

    received: list[ExportTraceServiceRequest]
    paths: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        type(self).paths.append(self.path)
        type(self).received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    handler = type("Fresh", (Receiver,), {"received": [], "paths": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", handler
        server.shutdown()
        thread.join()


def test_a_receiver_gets_what_is_left_at_the_end(start: Start, receiver: tuple[str, type[Receiver]]) -> None:
    endpoint, handler = receiver
    with start(traces_endpoint=endpoint) as server:
        assert server.complete().status_code == 200
    assert set(handler.paths) == {"/v1/traces"}
    [resource] = [spans for request in handler.received for spans in request.resource_spans]
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/completions", "decode", "prefill", "queue"]


def test_a_receiver_that_is_not_there_delays_nothing(start: Start) -> None:
    with start(traces_endpoint="http://127.0.0.1:9/v1/traces") as server:
        assert server.complete().status_code == 200
    assert server.exit_codes == [0]


def test_without_the_extra_the_config_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vinfer.server.http.traces", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'vinfer\[otel\]'"):
        create_app(ServerConfig(traces_endpoint="http://127.0.0.1:4318/v1/traces"), ModelTable(["m"]))


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:4318", "file:///etc/passwd", "http://", "http:///x", "http://a b"]
)
def test_only_http_urls_are_endpoints(endpoint: str) -> None:
    with pytest.raises(ValueError, match="must be an http or https URL"):
        ServerConfig(traces_endpoint=endpoint)

"""OpenTelemetry traces: one span per request, with spans for its queue, prefill and decode inside.

The spans are made when the request has ended, from the times that are measured anyway; so a request costs
nothing more while it runs. Event loop; a thread of the SDK sends them. Needs the extra `otel`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vinfer.server.http.context import RequestContext
from vinfer.version import __version__

_SEND_SECONDS = 5
_CLOSE_SECONDS = 2.0
_PROPAGATED = (b"traceparent", b"tracestate")


class RequestTraces:
    """Makes spans and hands them to an exporter.

    The environment variables of the SDK apply, such as OTEL_TRACES_SAMPLER and OTEL_RESOURCE_ATTRIBUTES.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.name": "vinfer", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vinfer", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        context: RequestContext,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        method: str,
        route: str,
        status: int,
    ) -> str:
        """Record a request that has just ended, and return its trace id in hexadecimal.

        Args:
            headers: of the request; its parent is in `traceparent`.
            status: what was sent, 499 if the client left, or 0 if nothing was sent.
        """
        sent = {name.decode(): value.decode("latin-1") for name, value in headers if name in _PROPAGATED}
        end = time.time_ns()
        start = end - _ns(context.elapsed_seconds())
        usage = context.usage
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(sent),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "vinfer.request_id": context.request_id,
                "vinfer.key": context.key_name,
                "gen_ai.request.model": context.model_name,
                "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
                "gen_ai.usage.output_tokens": usage.num_completion_tokens,
            },
            start_time=start,
        )
        if context.failed or status >= 500 or status == 0:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for name, first, last in _phases(context, start, end):
            self._tracer.start_span(name, inside, start_time=first).end(last)
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what is left; give up after two seconds, since a drain must come to its end."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


def otlp_traces(endpoint: str) -> RequestTraces:
    """Return traces that are sent by OTLP over HTTP."""
    return RequestTraces(OTLPSpanExporter(endpoint, timeout=_SEND_SECONDS))


def _phases(context: RequestContext, start: int, end: int) -> Iterable[tuple[str, int, int]]:
    """Yield the phases that a request has reached: name, begin and end in Unix nanoseconds."""
    usage = context.usage
    if usage.queue_seconds is None:
        return
    admitted = start + _ns(usage.queue_seconds)
    yield "queue", start, admitted
    if usage.first_token_seconds is None:
        yield "prefill", admitted, end
        return
    first_token = start + _ns(usage.first_token_seconds)
    yield "prefill", admitted, first_token
    yield "decode", first_token, end


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

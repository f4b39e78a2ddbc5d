"""Liveness, readiness, version and metrics: routes for probes and dashboards. Event loop only."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from vinfer.server.answers.bodies import Health, Liveness, ModelProgress, Readiness, Version
from vinfer.server.model_table import ModelStatus
from vinfer.server.services import Services
from vinfer.version import __version__


async def liveness(services: Services, request: HttpRequest) -> JSONResponse:
    """Report that the process is alive."""
    body: Liveness = {"status": "alive"}
    return JSONResponse(body)


async def readiness(services: Services, request: HttpRequest) -> JSONResponse:
    """Report whether every model is being served, or else their progress.

    The status is 503 until every required one is.
    """
    models = services.models
    statuses = models.statuses
    body: Readiness = {
        "phase": models.phase,
        "done": sum(status.done for status in statuses),
        "total": sum(status.total for status in statuses),
        # Public, so without the error, which may name files. The log has it.
        "models": [_progress(status) for status in statuses],
    }
    return JSONResponse(body, 200 if models.ready else 503)


async def health(services: Services, request: HttpRequest) -> JSONResponse:
    """Report whether every model is being served.

    The same as `readiness`, in the form that load-testing tools expect.
    """
    phase = services.models.phase
    ready = phase == "ready"
    body: Health = {"status": "ok" if ready else phase}
    return JSONResponse(body, 200 if ready else 503)


async def version(services: Services, request: HttpRequest) -> JSONResponse:
    """Return vinfer's version."""
    body: Version = {"version": __version__}
    return JSONResponse(body)


async def metrics(services: Services, request: HttpRequest) -> Response:
    """Return the metrics for Prometheus."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _progress(status: ModelStatus) -> ModelProgress:
    since = status.since_seconds
    return {
        "name": status.name,
        "phase": status.phase,
        "done": status.done,
        "total": status.total,
        "elapsed_seconds": None if since is None else round(time.monotonic() - since, 1),
        "expected_seconds": None if status.expected_seconds is None else round(status.expected_seconds, 1),
    }

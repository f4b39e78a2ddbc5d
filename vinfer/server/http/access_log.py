"""One log line per HTTP request: who, what, how much, how long. It holds no text from the client.

Event loop. The values are also attributes of the record, for a log in JSON.
"""

from __future__ import annotations

import logging

from vinfer.server.http.context import RequestContext

access_logger = logging.getLogger("vinfer.access")


def log_access(
    context: RequestContext, method: str, route: str, status: int, seconds: float, *, is_probe: bool
) -> None:
    """Write the line of a request that has ended; that of a probe only at level debug.

    Args:
        route: the route's pattern.
        status: what was sent, or 499 if the client left.
        seconds: since its arrival.
    """
    level = logging.DEBUG if is_probe and status < 400 else logging.INFO
    if not access_logger.isEnabledFor(level):
        return
    usage = context.usage
    values: dict[str, object] = {
        "client": context.client,
        "key": context.key_name,
        "model": context.model_name,
    }
    if usage.num_prompt_tokens:
        values |= {
            "prompt_tokens": usage.num_prompt_tokens,
            "completion_tokens": usage.num_completion_tokens,
            "queue_seconds": _rounded(usage.queue_seconds),
            "first_token_seconds": _rounded(usage.first_token_seconds),
        }
    values |= {"request_id": context.request_id, "trace_id": context.trace_id}
    said = {name: value for name, value in values.items() if value not in ("", None)}
    details = " ".join(f"{name}={value}" for name, value in said.items())
    extra = {
        "fields": {"method": method, "route": route, "status": status, "seconds": round(seconds, 3), **said}
    }
    access_logger.log(level, "%s %s %d %.3fs %s", method, route, status, seconds, details, extra=extra)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

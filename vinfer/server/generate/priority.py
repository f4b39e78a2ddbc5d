"""Decides the priority of a request from its field and its API key. Event loop."""

from __future__ import annotations

from vinfer.errors import RequestError
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.http.context import RequestContext


def allowed_priority(fields: SamplingFields, context: RequestContext) -> int:
    """Return the request's priority; without the field it is 0, or what its API key may send next to it.

    Raises:
        RequestError: the API key may not send this `priority`.
    """
    lowest, highest = context.priorities
    priority = min(max(fields.priority, lowest), highest)
    if priority != fields.priority and "priority" in fields.model_fields_set:
        raise RequestError(
            f"priority is {fields.priority}; this API key may send {lowest} to {highest}, and the lowest "
            "value goes first: choose one of these, or have the key's line in server.api_keys_file changed",
            param="priority",
        )
    return priority

"""Admits a request that generates: its model, how many answers it gets, and its priority. Event loop.

It comes before the prompt is written, so that no work is spent on a request that is refused.
"""

from __future__ import annotations

import dataclasses

from vinfer.errors import RequestError
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.http.context import RequestContext
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a request gets; `n` is the number of answers to each prompt."""

    model: ServedModel
    n: int
    priority: int


def admit(services: Services, context: RequestContext, fields: SamplingFields) -> Admission:
    """Return what a request gets.

    Raises:
        ModelNotFoundError, NotReadyError: the model cannot be asked now.
        RequestError: the model does not generate, `n` is more than `server.max_n`, or the API key may not
            send this `priority`.
        QueueFullError: there is no room.
    """
    model = services.models.serving(fields.model)
    context.model_name = model.name
    model.require_head()
    n = model.sampling.n if fields.n is None else fields.n
    max_n = services.config.max_n
    if n > max_n:
        raise RequestError(f"n is {n}; server.max_n is {max_n}: ask for fewer choices", param="n")
    priority = _allowed_priority(fields, context)
    model.engine.check_room(context.tenant)
    return Admission(model=model, n=n, priority=priority)


def _allowed_priority(fields: SamplingFields, context: RequestContext) -> int:
    """Return the priority; without the field it is 0, or what the request's API key may send next to it."""
    lowest, highest = context.priorities
    priority = min(max(fields.priority, lowest), highest)
    if priority != fields.priority and "priority" in fields.model_fields_set:
        raise RequestError(
            f"priority is {fields.priority}; this API key may send {lowest} to {highest}, and the lowest "
            "value goes first: choose one of these, or have the key's line in server.api_keys_file changed",
            param="priority",
        )
    return priority

"""Turns config keys into the limits of one engine. Pure function; any thread."""

from __future__ import annotations

from vinfer.config import ModelConfig
from vinfer.engine.tenants import TenantLimits


def tenant_limits(model: ModelConfig, *, num_slots: int, num_keys: int) -> TenantLimits:
    """Return a model's limits; each API key is a tenant.

    Args:
        num_slots: the bundle's.
        num_keys: with several, the defaults leave room that one key alone cannot take.
    """
    has_several = num_keys > 1
    queue = model.max_queue_per_key
    running = model.max_running_per_key
    if queue is None:
        queue = max(model.max_queue // 2, 1) if has_several else model.max_queue
    if running is None:
        running = max(num_slots * 3 // 4, 1) if has_several else num_slots
    return TenantLimits(
        max_queue=model.max_queue,
        max_queue_per_tenant=min(queue, model.max_queue),
        max_running_per_tenant=min(running, num_slots),
    )

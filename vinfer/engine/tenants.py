"""Limits that divide one engine among tenants. Plain data; any thread."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """How much of an engine is for all tenants together, and for one of them.

    Attributes:
        max_queue: most requests that may wait for a slot.
        max_queue_per_tenant: most of them of one tenant.
        max_running_per_tenant: most slots of one tenant.
    """

    max_queue: int
    max_queue_per_tenant: int
    max_running_per_tenant: int

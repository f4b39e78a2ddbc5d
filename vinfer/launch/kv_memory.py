"""Decides how many pages the KV cache of a model has on this machine: `models[].kv_cache`, or a default.

Loader thread, once per model, before anything is compiled. Knows no arrays.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vinfer.bundle.kv_pages import PagePlan
from vinfer.bundle.manifest import Manifest, Platform
from vinfer.config import KVCacheConfig
from vinfer.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_CPU_BYTES = 4 << 30
"""Without `kv_cache`, a CPU's pages never take more, nor more than a quarter of the process's memory."""
CPU_FRACTION = 0.25
ACCELERATOR_FRACTION = 0.9
"""Of an accelerator's memory, for weights, KV cache and programs together."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def choose_pages(
    manifest: Manifest, config: KVCacheConfig, *, where: str, memory_bytes: int | None, temporary_bytes: int
) -> tuple[int, ...]:
    """Return the pages of each group in one dp shard.

    Args:
        where: the model's place in the config, such as `models[0]`, for messages.
        memory_bytes: memory of one device, if known; for a CPU what this process may use.
        temporary_bytes: most memory that a program needs besides its arguments, on one device.

    Raises:
        ConfigError: the pages do not hold even one prefill, or the memory is not known.
    """
    plan = manifest.page_plan
    most = plan.most_pages()
    chosen = _stated(plan, config, manifest, where, memory_bytes)
    if chosen is None:
        budget = _default_bytes(manifest, plan, memory_bytes, temporary_bytes)
        chosen = plan.within(budget)
    chosen = plan.with_pages(min(chosen[0], most[0]))
    if plan.max_len(chosen) < min(plan.max_write_len, plan.max_model_len):
        raise ConfigError(
            f"{where}.kv_cache has room for {chosen[0]} pages of {plan.page_size} tokens in each dp shard; the "
            f"longest prefill_length is {plan.max_write_len}: raise kv_cache, or lower prefill_length or the "
            "memory of weights"
        )
    logger.info(
        "KV cache: %d pages of %d tokens (%.2f GiB per device), requests of up to %d tokens",
        chosen[0] * manifest.mesh["dp"],
        plan.page_size,
        plan.num_bytes(chosen) / 2**30,
        plan.max_len(chosen),
    )
    return chosen


def _stated(
    plan: PagePlan, config: KVCacheConfig, manifest: Manifest, where: str, memory_bytes: int | None
) -> tuple[int, ...] | None:
    if config.pages is not None:
        return plan.with_pages(config.pages // manifest.mesh["dp"])
    if config.bytes is not None:
        return plan.within(config.bytes)
    if config.memory_fraction is None:
        return None
    if memory_bytes is None:
        raise ConfigError(
            f"{where}.kv_cache.memory_fraction is {config.memory_fraction}, but the device does not say how "
            "much memory it has: set kv_cache.bytes"
        )
    return plan.within(int(memory_bytes * config.memory_fraction))


def _default_bytes(
    manifest: Manifest, plan: PagePlan, memory_bytes: int | None, temporary_bytes: int
) -> int:
    everything = plan.num_bytes(plan.most_pages())
    if memory_bytes is None:
        return everything
    if manifest.platform == "cpu":
        # All devices of a CPU share its memory.
        share = int(min(MAX_CPU_BYTES, memory_bytes * CPU_FRACTION)) // manifest.num_devices
        return min(everything, share)
    others = sum(manifest.num_bytes_per_device([0] * len(plan.groups)).values())
    left = int(memory_bytes * ACCELERATOR_FRACTION) - others - temporary_bytes
    return max(min(everything, left), 0)


def process_memory_bytes(platform: Platform, device_bytes: int | None) -> int | None:
    """Return the memory of a device, or for a CPU what the container lets this process use."""
    if platform != "cpu" or device_bytes is None:
        return device_bytes
    try:
        return min(int(_CGROUP_LIMIT.read_text()), device_bytes)
    except (OSError, ValueError):
        # No container, or "max".
        return device_bytes

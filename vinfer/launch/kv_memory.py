"""Decides how many pages the KV cache of a model has on this machine: `models[].kv_cache`, or a default.

Loader thread: once with the plan, before anything is built, and once before programs are compiled. Pure
arithmetic, but for the container's memory limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vinfer.bundle.kv_pages import PagePlan
from vinfer.bundle.manifest import Platform
from vinfer.config import KVCacheConfig, ModelConfig
from vinfer.errors import ConfigError

MAX_CPU_BYTES = 4 << 30
"""Without `kv_cache`, a CPU's pages never take more, nor more than a quarter of the process's memory."""
CPU_FRACTION = 0.25
ACCELERATOR_FRACTION = 0.9
"""Of an accelerator's memory, for weights, KV cache and programs together."""
STORED_FRACTION = 0.9
"""Machine code for fewer pages than fit is used, if it is for at least so many of them."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What a device has, and what other things than the KV cache take of it, in bytes.

    Attributes:
        total: memory of one device; for a CPU, what this process may use, over all its devices. None if the
            device does not say.
        weights: weights, state and image features, on one device.
        temporary: most memory that a program needs besides its arguments, on one device.
    """

    platform: Platform
    num_devices: int
    total: int | None
    weights: int
    temporary: int = 0

    @property
    def of_one_device(self) -> int | None:
        """Memory of one device; for a CPU that emulates several, its share of the process's memory."""
        if self.total is None or self.platform != "cpu":
            return self.total
        return self.total // self.num_devices

    @property
    def left(self) -> int | None:
        """Memory for the pages where the config does not say; None if unknown."""
        if self.total is None:
            return None
        if self.platform == "cpu":
            return int(min(MAX_CPU_BYTES, self.total * CPU_FRACTION)) // self.num_devices
        return max(int(self.total * ACCELERATOR_FRACTION) - self.weights - self.temporary, 0)


def choose_pages(
    plan: PagePlan,
    model: ModelConfig,
    memory: DeviceMemory,
    *,
    dp: int,
    where: str,
    stored: Sequence[tuple[int, ...]] = (),
) -> tuple[int, ...]:
    """Return the pages of each group in one dp shard: never more than all slots can use.

    Args:
        model: says the size of the KV cache and, if it states `max_model_len`, what has to fit.
        where: the model's place in the config, such as `models[0]`, for messages.
        stored: numbers of pages that machine code is stored for. One of them is taken instead of a default
            number, if it wastes little; see `closest_stored`.

    Raises:
        ConfigError: the pages do not hold the longest prefill or the stated `max_model_len`, or the device
            does not say its memory.
    """
    chosen = _pages(plan, model.kv_cache, memory, dp, where)
    least = min(plan.max_write_len, plan.max_model_len)
    if plan.max_len(chosen) < least:
        raise ConfigError(
            f"{where}.kv_cache has room for {chosen[0]} pages of {plan.page_size} tokens per device; one "
            f"prefill has up to {least} tokens: raise kv_cache, lower prefill_length, or split the weights "
            "over more devices with mesh.tp"
        )
    if model.max_model_len is not None and plan.max_len(chosen) < plan.max_model_len:
        raise ConfigError(
            f"{where}.max_model_len is {model.max_model_len}; the KV cache holds {plan.max_len(chosen)} "
            "tokens: lower max_model_len, leave it out to take what fits, or raise kv_cache"
        )
    if not is_measured(model, memory.platform):
        return chosen
    # A stated length is never lowered, not even for machine code that is there.
    return closest_stored(
        chosen, [counts for counts in stored if plan.max_len(counts) >= (model.max_model_len or 0)]
    )


def is_measured(model: ModelConfig, platform: Platform) -> bool:
    """Return whether the pages take what the device has left, which follows from the programs' own needs."""
    return platform != "cpu" and not model.kv_cache.model_fields_set


def _pages(
    plan: PagePlan, config: KVCacheConfig, memory: DeviceMemory, dp: int, where: str
) -> tuple[int, ...]:
    most = plan.most_pages()
    if config.pages is not None:
        return plan.with_pages(min(config.pages // dp, most[0]))
    if config.bytes is not None:
        budget: int | None = config.bytes
    elif config.memory_fraction is None:
        budget = memory.left
    elif memory.total is None:
        raise ConfigError(
            f"{where}.kv_cache.memory_fraction is {config.memory_fraction}, but the device does not say how "
            "much memory it has: set kv_cache.bytes"
        )
    else:
        budget = int(memory.total * config.memory_fraction)
    if budget is None or plan.num_bytes(most) <= budget:
        return most
    return plan.within(budget)


def closest_stored(num_pages: tuple[int, ...], stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the largest stored numbers of pages that fit and waste little, or `num_pages` if there are none.

    The memory that a device reports differs a little from what machine code was compiled for elsewhere.

    Args:
        num_pages: as many as fit, by group.
        stored: numbers of pages that machine code is stored for.
    """
    fitting = [
        counts
        for counts in stored
        if len(counts) == len(num_pages)
        and all(
            STORED_FRACTION * most <= count <= most for count, most in zip(counts, num_pages, strict=True)
        )
    ]
    return max(fitting, default=num_pages)


def memory_of(
    platform: Platform, device_bytes: int | None, *, num_devices: int, weights: int, temporary: int = 0
) -> DeviceMemory:
    """Return the memory of devices with a model on them.

    Args:
        device_bytes: memory of one device, if known.
        weights, temporary: see `DeviceMemory`.
    """
    return DeviceMemory(
        platform=platform,
        num_devices=num_devices,
        total=process_memory_bytes(platform, device_bytes),
        weights=weights,
        temporary=temporary,
    )


def process_memory_bytes(platform: Platform, device_bytes: int | None) -> int | None:
    """Return the memory of a device, or for a CPU what the container lets this process use."""
    if platform != "cpu" or device_bytes is None:
        return device_bytes
    try:
        return min(int(_CGROUP_LIMIT.read_text()), device_bytes)
    except (OSError, ValueError):
        # No container, or "max".
        return device_bytes

"""How much memory a new process may take, as Linux says it."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int | None:
    """Return what the machine can give without swapping, or the container's limit leaves; None if unknown."""
    amounts = [amount for amount in (_machine_bytes(), _container_bytes()) if amount is not None]
    return min(amounts, default=None)


def _machine_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container_bytes() -> int | None:
    """Read cgroup v2 as a container sees its own; what the page cache holds can be had again."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    return max(limit - used + cached, 0)

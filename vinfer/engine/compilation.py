"""JAX's compilation cache and the count of compiles, both process-wide.

The cache is set once, before the first compile; one directory serves all models.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
from pathlib import Path

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

logger = logging.getLogger(__name__)

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompileCounter:
    """Counts XLA compiles (cached loads included), and separately those after `mark_ready`.

    Any thread. One per process, because JAX's listeners cannot be removed individually.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self.num_cache_hits = 0
        self._num_at_ready: int | None = None
        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)

    def mark_ready(self) -> None:
        """Count every compile from now on as post-ready."""
        self._num_at_ready = self.num_compiles

    @property
    def num_post_ready(self) -> int:
        return 0 if self._num_at_ready is None else self.num_compiles - self._num_at_ready

    def _on_duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event == _COMPILE_EVENT:
            self.num_compiles += 1

    def _on_event(self, event: str, **_: object) -> None:
        if event == _CACHE_HIT_EVENT:
            self.num_cache_hits += 1


def platform_key() -> str:
    """Return the key of code compiled here: `<platform>-<device kind>-<hash of the CPU's features>`.

    Code for one CPU may use instructions that another lacks, so the features are part of the key.
    """
    device = jax.local_devices()[0]
    features = hashlib.sha256(_cpu_features().encode()).hexdigest()[:12]
    kind = device.device_kind.replace(" ", "_").replace("/", "_").lower()
    return f"{device.platform}-{kind}-{features}"


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def set_compilation_cache(directory: Path) -> None:
    """Point JAX's compilation cache at a private directory; log a warning if it cannot be used.

    By default JAX caches nothing that compiles in under a second, which would skip most of our programs.
    """
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(directory, os.W_OK):
            raise PermissionError(f"{directory} is not writable")
        _make_private(directory)
    except OSError as error:
        logger.warning("no compilation cache: %s; every start compiles anew", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # By default JAX puts a path under the directory into every key, so a seeded entry would never be found.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_raise_persistent_cache_errors", False)


def _make_private(directory: Path) -> None:
    """Take the right to write from others: whoever can write to the cache can run code in this process.

    Raises:
        PermissionError: others may write to it, and it is not ours to change.
    """
    status = directory.stat()
    writable_by_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not writable_by_others:
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{directory} has mode {mode:04o} and another owner, so others may write to it")
    directory.chmod(mode & ~writable_by_others)
    logger.warning(
        "the compilation cache %s had mode %04o, so others could write code that runs here: changed to %04o; "
        "delete its files if you do not trust them",
        directory,
        mode,
        mode & ~writable_by_others,
    )


def seed_cache(source: Path, cache: Path) -> None:
    """Copy the compiled code that a bundle carries into the cache, unless it is already there.

    If the cache cannot be written, log a warning and go on; the programs are then compiled.
    """
    if not source.is_dir():
        return
    try:
        for file in source.iterdir():
            target = cache / file.name
            if not target.exists():
                scratch = target.with_name(f".{file.name}.{os.getpid()}")
                shutil.copyfile(file, scratch)
                scratch.rename(target)
    except OSError as error:
        logger.warning("the bundle's compiled code could not be copied to %s: %s", cache, error)

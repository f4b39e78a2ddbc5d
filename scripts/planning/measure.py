"""Loads the bundle of a config as the server does, and prints what that took: `measure.py CONFIG [DEVICES]`.

One JSON line: anonymous memory that the load added, and the bytes of JAX arrays on the first device.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Measure one config."""
    from vinfer.config import load_config
    from vinfer.launch.bundles import code_cache_dir, find_or_build
    from vinfer.launch.devices import local_devices, target_devices
    from vinfer.launch.engine_start import start_engine
    from vinfer.launch.terminal import quiet_xla
    from vinfer.server.intake import give_memory_back

    quiet_xla()
    config = load_config(sys.argv[1], environ=os.environ)
    [model] = config.models
    target = local_devices(target_devices(sys.argv[2] if len(sys.argv) > 2 else None))
    bundle = find_or_build(
        model,
        where="models[0]",
        target=target,
        bundles_dir=config.bundles_dir,
        progress=lambda *_: None,
    )
    # What is imported only once is not the model's.
    import jax.numpy as jnp

    importlib.import_module("vinfer.engine.loading.load")
    jnp.zeros(1).block_until_ready()
    before = _anonymous_bytes()
    engine = start_engine(
        bundle,
        model,
        target,
        code_roots=bundle.code_roots(code_cache_dir(config, os.environ)),
        progress=lambda *_: None,
    )
    gc.collect()
    # As the server does between requests: what the allocator keeps for later is nobody's.
    give_memory_back()
    added = _anonymous_bytes() - before
    engine.stop()
    print(json.dumps({"added_bytes": added, "array_bytes": _array_bytes(target.devices[0])}))


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def _array_bytes(device: object) -> int:
    import jax

    return sum(
        shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
        if shard.device == device
    )


if __name__ == "__main__":
    main()

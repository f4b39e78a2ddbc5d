"""How programs are compiled for the kinds of devices in `vinfer.launch.device_kinds`, and what they may cost.

A process that compiles must start with `compiling_environment`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vinfer.bundle.manifest import Platform

TP = (1, 4, 8)
"""Numbers of devices that share a model."""
MAX_TRAFFIC: Mapping[Platform, float] = {"tpu": 1.1, "cuda": 1.3}
"""Most bytes of a decode step against the ideal."""


def compiling_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that compiles."""
    # EasyDeL leaves flags there that end libtpu.
    inherited = {name: value for name, value in environment.items() if name != "XLA_FLAGS"}
    return {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        # Nothing is known of this machine that libtpu could ask for.
        "TPU_SKIP_MDS_QUERY": "1",
        # Otherwise a lock file allows one process at a time.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

"""Kinds of accelerators by name, and descriptions of them that the real compilers take without a device.

`vinfer precompile --devices tpu-v5e:4` compiles for devices that this machine lacks. Their compilers are in
packages that vinfer does not require.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.manifest import Platform
from vinfer.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import jax

_GIB = 1 << 30
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """One kind of accelerator.

    Attributes:
        names: JAX's names of the kind, in lower case.
        memory_bytes: what JAX can use of one device's memory.
        topologies: libtpu's name for so many devices; empty for GPUs, where every number is one topology.
        target_config: XLA's description of a GPU.
    """

    platform: Platform
    names: tuple[str, ...]
    memory_bytes: int
    topologies: Mapping[int, str] = dataclasses.field(default_factory=dict)
    target_config: str = ""


KINDS = {
    "v5e": DeviceKind(
        platform="tpu",
        names=("tpu v5 lite", "tpu v5e"),
        memory_bytes=15 * _GIB + 3 * _GIB // 4,
        topologies={1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4"},
    ),
    "v6e": DeviceKind(
        platform="tpu",
        names=("tpu v6 lite", "tpu v6e"),
        memory_bytes=31 * _GIB + _GIB // 4,
        topologies={1: "v6e:1x1", 4: "v6e:2x2", 8: "v6e:2x4"},
    ),
    # A chip is two devices.
    "v7x": DeviceKind(
        platform="tpu",
        names=("tpu7x",),
        memory_bytes=94 * _GIB,
        topologies={1: "tpu7x:1x1x1", 4: "tpu7x:2x2x1", 8: "tpu7x:2x2x1"},
    ),
    # JAX takes three quarters of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    "h100": DeviceKind(
        platform="cuda", names=("nvidia h100 80gb hbm3",), memory_bytes=59 * _GIB, target_config=_H100
    ),
}


def described_devices(kind: str, count: int) -> Sequence[jax.Device]:
    """Return devices of a kind that programs can be compiled for; nothing runs on them.

    Raises:
        ConfigError: the kind has no topology of so many devices.
        DeviceError: the compiler is not installed.
    """
    facts = KINDS[kind]
    if facts.topologies and count not in facts.topologies:
        counts = ", ".join(str(number) for number in facts.topologies)
        raise ConfigError(f"--devices asks for {count} of {kind}; code can be compiled for {counts}")
    if missing := missing_packages(facts.platform):
        raise DeviceError(
            f"--devices asks for machine code for {kind}, and its compiler is not installed: run pip install "
            f"{' '.join(missing)}, or leave out the kind to write the bundle without machine code"
        )
    # Nothing is known of this machine that libtpu could ask for, and another process may compile too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    if facts.platform == "cuda":
        description = topologies.get_topology_desc(
            platform="cuda",
            topology_name=f"1x1x{count}",
            topology=f"1x1x{count}",
            target_config=facts.target_config,
        )
    else:
        # libtpu assumes four chips per host unless told otherwise.
        single = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=facts.topologies[count], **single
        )
    return list(description.devices)[:count]


def may_be_here(platform: Platform) -> bool:
    """Return False if this machine certainly has no device of a platform."""
    patterns = {"tpu": ("accel*", "vfio/[0-9]*"), "cuda": ("nvidia*", "dxg"), "cpu": ("null",)}[platform]
    return any(path.exists() for pattern in patterns for path in Path("/dev").glob(pattern))


def missing_packages(platform: Platform) -> list[str]:
    """Return what pip must install to compile for a platform. The installed jax decides the versions."""
    if platform == "tpu":
        return [] if importlib.util.find_spec("libtpu") else [_libtpu_requirement()]
    if platform == "cpu":
        return []
    version = importlib.metadata.version("jax")
    wanted = {
        "jax_plugins.xla_cuda12": (f"jax-cuda12-plugin=={version}", f"jax-cuda12-pjrt=={version}"),
        "nvidia.cuda_nvcc": ("nvidia-cuda-nvcc-cu12",),
    }
    return [name for module, names in wanted.items() if not _is_installed(module) for name in names]


def _libtpu_requirement() -> str:
    """Return the requirement of `jax[tpu]` for libtpu, such as `libtpu==0.0.37.*`."""
    for requirement in importlib.metadata.requires("jax") or ():
        if found := re.match(r"(libtpu[^;\s]*)", requirement):
            return found[1]
    return "libtpu"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

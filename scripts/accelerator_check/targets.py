"""The accelerators that programs are compiled for, and the packages with their compilers.

A process that compiles must start with `compiling_environment`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, Literal

H100 = """
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


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        topologies: the compiler's name of a machine with so many devices or more.
        memory_bytes: of one device.
        max_traffic: most bytes of a decode step against the ideal.
    """

    platform: Literal["tpu", "cuda"]
    topologies: Mapping[int, str]
    memory_bytes: int
    max_traffic: float


TARGETS = {
    "v5e": Target("tpu", {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4"}, 16 << 30, 1.1),
    "v6e": Target("tpu", {1: "v6e:1x1", 4: "v6e:2x2", 8: "v6e:2x4"}, 32 << 30, 1.1),
    # A chip is two devices.
    "v7x": Target("tpu", {1: "tpu7x:1x1x1", 4: "tpu7x:2x2x1", 8: "tpu7x:2x2x1"}, 96 << 30, 1.1),
    "h100": Target("cuda", {1: "1x1x1", 4: "1x1x4", 8: "1x1x8"}, 80 << 30, 1.3),
}
TP = (1, 4, 8)
"""Numbers of devices that share a model."""


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


def missing_packages(platform: str) -> list[str]:
    """Return what pip must install to compile for a platform. The locked jax decides the versions."""
    if platform == "tpu":
        return [] if importlib.util.find_spec("libtpu") else [libtpu_requirement()]
    version = importlib.metadata.version("jax")
    wanted = {
        "jax_plugins.xla_cuda12": f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}",
        "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
    }
    return [names for module, names in wanted.items() if not _is_installed(module)]


def libtpu_requirement() -> str:
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


def devices(target: Target, number: int) -> list[Any]:
    """Return some devices of a kind. They compile, and nothing can run on them."""
    from jax.experimental import topologies

    name = target.topologies[number]
    if target.platform == "cuda":
        description = topologies.get_topology_desc(
            platform="cuda", topology_name=name, topology=name, target_config=H100
        )
    else:
        # libtpu assumes four chips per host unless told otherwise.
        single = {"chips_per_host_bounds": (1, 1, 1)} if number == 1 else {}
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **single)
    return list(description.devices)[:number]

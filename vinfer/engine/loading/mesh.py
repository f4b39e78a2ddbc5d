"""The mesh of a bundle over some devices, and where each array of a program lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vinfer.bundle.manifest import MESH_AXES, ArraySpec, Manifest


def make_mesh(manifest: Manifest, devices: Sequence[jax.Device]) -> Mesh:
    """Return the bundle's mesh over the first of the devices."""
    sizes = [manifest.mesh[axis] for axis in MESH_AXES]
    grid = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    return Mesh(grid, MESH_AXES)


def sharding_of(spec: ArraySpec, mesh: Mesh) -> Sharding:
    """Return how an array is split over the mesh."""
    if mesh.size == 1:
        # Equivalent to a NamedSharding, and much cheaper to trace and lower hundreds of times.
        return SingleDeviceSharding(mesh.devices.flat[0])
    return NamedSharding(mesh, PartitionSpec(*spec.axes))


def weight_placement(spec: ArraySpec, mesh: Mesh) -> Sharding | Format:
    """Return how a weight lies on the devices: on a TPU in the order of its axes.

    A TPU's own choice is the order that pads least. It stores an embedding of 2,880 columns by columns, and
    each dispatch then copies all of it to read some rows.
    """
    sharding = sharding_of(spec, mesh)
    if not _is_tpu(mesh) or len(spec.shape) < 2:
        return sharding
    return Format(Layout(major_to_minor=tuple(range(len(spec.shape)))), sharding)


def _is_tpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "tpu")

"""The mesh of a bundle over some devices, and where each array of a program lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
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

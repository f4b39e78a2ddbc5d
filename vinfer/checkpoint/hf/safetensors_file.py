"""One safetensors file: its tensors by name, each read by itself.

Runs in the build half, on any thread. Values are read, not memory-mapped: mapped pages count as memory of the
process for as long as the file is open, and a build would grow by every shard it has been through. Knows
nothing of checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vinfer.checkpoint.layout import Shape
from vinfer.errors import CheckpointError

DTYPES: dict[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "U8": np.uint8,
}
"""The format's name -> dtype, for those that are read; U8 only as a part of MXFP4."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        dtype: the format's name; those in `DTYPES` can be read.
        begin: its first byte in the file.
    """

    path: Path
    dtype: str
    shape: Shape
    begin: int

    def read(self) -> npt.NDArray[Any]:
        """Read the whole tensor.

        Raises:
            CheckpointError: the file has become shorter, or cannot be read any more.
        """
        return self._read(0, self.shape)

    def read_rows(self, first: int, count: int) -> npt.NDArray[Any]:
        """Read `count` rows of the first axis, fewer at the end; raises as `read`."""
        count = max(min(count, self.shape[0] - first), 0)
        return self._read(first, (count, *self.shape[1:]))

    def _read(self, first_row: int, shape: Shape) -> npt.NDArray[Any]:
        dtype = np.dtype(DTYPES[self.dtype])
        num_values = math.prod(shape)
        offset = self.begin + first_row * math.prod(self.shape[1:]) * dtype.itemsize
        try:
            # As bytes: NumPy reads no bfloat16.
            values = np.fromfile(self.path, np.uint8, num_values * dtype.itemsize, offset=offset)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        if values.size != num_values * dtype.itemsize:
            raise CheckpointError(
                f"{self.path} has become shorter while it was read: it is being written by someone else"
            )
        return values.view(dtype).reshape(shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a file; its tensors in the order in which they lie there.

    Raises:
        CheckpointError: the file is missing, truncated or not in the format.
    """
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist: the download is incomplete; fetch the checkpoint again"
            )
        # Checks all of it: sizes of header and file, every shape, dtype and span, gaps and overlaps.
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): download it again"
        ) from error
    tensors = {
        name: StoredTensor(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return dict(sorted(tensors.items(), key=lambda item: item[1].begin))

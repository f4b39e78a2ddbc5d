"""Reads the tensors of one safetensors file by name, one at a time.

Runs in the build half, on any thread. Reads values instead of memory-mapping them: mapped pages count as
memory of the process while the file is open, so a build would grow with every shard it reads. Knows
nothing of checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from vinfer.checkpoint.layout import Shape
from vinfer.errors import CheckpointError
from vinfer.safetensors_header import read_header

DTYPES: dict[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "U8": np.uint8,
}
"""The format's name -> dtype, for supported dtypes; U8 only as part of MXFP4."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """The location of one tensor.

    Attributes:
        dtype: the format's name; those in `DTYPES` can be read.
        begin: offset of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: Shape
    begin: int

    def read(self) -> npt.NDArray[Any]:
        """Read the whole tensor.

        Raises:
            CheckpointError: the file has become shorter, or can no longer be read.
        """
        return self._read(0, self.shape)

    def read_rows(self, first: int, count: int) -> npt.NDArray[Any]:
        """Read `count` rows of the first axis, fewer at the end; raises like `read`."""
        count = max(min(count, self.shape[0] - first), 0)
        return self._read(first, (count, *self.shape[1:]))

    def _read(self, first_row: int, shape: Shape) -> npt.NDArray[Any]:
        dtype = np.dtype(DTYPES[self.dtype])
        num_values = math.prod(shape)
        offset = self.begin + first_row * math.prod(self.shape[1:]) * dtype.itemsize
        try:
            # Read as bytes, because NumPy cannot read bfloat16.
            values = np.fromfile(self.path, np.uint8, num_values * dtype.itemsize, offset=offset)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        if values.size != num_values * dtype.itemsize:
            raise CheckpointError(
                f"{self.path} became shorter while it was read: another process is writing it; try again"
            )
        return values.view(dtype).reshape(shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a file; returns its tensors in file order.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist: the download is incomplete; fetch the checkpoint again"
            )
        header = read_header(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): download it again"
        ) from error
    tensors = {name: StoredTensor(path=path, **entry) for name, entry in header.items()}
    return dict(sorted(tensors.items(), key=lambda item: item[1].begin))

"""A bundle's weight files, mapped into memory: a value is read where it lies.

A CPU device uses a weight there too if it begins at a multiple of 64 bytes and is whole, so that it takes no
memory beside the page cache, which all processes share. Everything else is copied from there. A bundle is
replaced by a rename, so a mapped file keeps its content; nobody may write into one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from vinfer.bundle.manifest import WeightSpec
from vinfer.errors import BundleError
from vinfer.safetensors_header import read_header

_PAGE_BYTES = 4096
_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class WeightFiles:
    """Reads the weights of a directory; used by one thread.

    Attributes:
        num_read_bytes: of weights since the files were closed. They count toward this process's memory until
            then, and longer where an array is in use.
    """

    def __init__(self, directory: Path) -> None:
        self.num_read_bytes = 0
        self._directory = directory
        self._files: dict[str, tuple[dict[str, dict[str, Any]], np.ndarray[Any, Any]]] = {}

    def array(self, spec: WeightSpec) -> np.ndarray[Any, Any]:
        """Return a weight as it is in its file, mapped and not writable.

        Raises:
            BundleError: the file cannot be read, or has another weight than the manifest says.
        """
        path = self._directory / spec.file
        try:
            if spec.file not in self._files:
                header = read_header(path)
                self._files[spec.file] = header, np.memmap(path, np.uint8, mode="r").view(np.ndarray)
            header, content = self._files[spec.file]
            entry = header[spec.name]
            dtype = np.dtype(_DTYPES[entry["dtype"]])
        except KeyError as error:
            raise self._unreadable(spec, f"it has no {error}") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise self._unreadable(spec, str(error)) from None
        shape, begin = entry["shape"], entry["begin"]
        if shape != spec.shape:
            raise BundleError(
                f"weights/{spec.file}: {spec.name} has shape {list(shape)}, the manifest says "
                f"{list(spec.shape)}: run vinfer precompile again"
            )
        array = content[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        self.num_read_bytes += array.nbytes
        return array

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        self._files.clear()
        self.num_read_bytes = 0

    def _unreadable(self, spec: WeightSpec, reason: str) -> BundleError:
        return BundleError(f"weights/{spec.file} is not readable ({reason}): run vinfer precompile again")


def read_in(part: np.ndarray[Any, Any]) -> None:
    """Have the pages of a part of a mapped array read, so that nobody waits for them later.

    Other Python code runs meanwhile.
    """
    if part.flags.c_contiguous:
        part.reshape(-1).view(np.uint8)[::_PAGE_BYTES].max(initial=0)

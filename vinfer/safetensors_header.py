"""Reads the header of a safetensors file: what both halves need to find values in it.

Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

_LENGTH_BYTES = 8


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the `dtype`, `shape` and `begin` of each tensor; `begin` is its first byte in the file.

    Raises:
        SafetensorError, OSError, ValueError: the file cannot be read, or is not a whole safetensors file.
    """
    # Checks all of it: sizes of header and file, every shape, dtype and span, gaps and overlaps.
    with safe_open(path, framework="np"):
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    start = _LENGTH_BYTES + length
    return {
        name: {
            "dtype": entry["dtype"],
            "shape": tuple(entry["shape"]),
            "begin": start + entry["data_offsets"][0],
        }
        for name, entry in header.items()
        if name != "__metadata__"
    }

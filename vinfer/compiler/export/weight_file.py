"""Writes one safetensors file tensor by tensor.

Runs in the build child. Names, dtypes and shapes are known before any value is read, so the header comes
first and the values follow piece by piece: writing takes the memory of the largest piece. Knows neither
checkpoints nor EasyDeL. The caller that creates the directory syncs it.

Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vinfer.compiler.weights import Array, Read, Weight

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Values start at a multiple of this, counted from the start of the file. Where each weight has a multiple of
# so many bytes, a CPU device uses the mapped file: XLA wants its arrays to begin there.
_ALIGNMENT = 64
_LENGTH_BYTES = 8


def num_bytes(weight: Weight) -> int:
    """Return the size of a weight in its file, in bytes."""
    return math.prod(weight.shape) * _ITEM_BYTES[weight.dtype]


def write_weight_file(
    path: Path, weights: Sequence[Weight], read: Read, *, written: Callable[[], None]
) -> None:
    """Write weights in the order given, holding one piece of one weight at a time.

    Args:
        read: returns a tensor of the checkpoint by name.
        written: called after each weight.

    Raises:
        BuildError: the checkpoint does not match the weights; see `Weight.pieces`.
    """
    with path.open("wb") as file:
        file.write(_header(weights))
        for weight in weights:
            begin = file.tell()
            for piece in weight.pieces(read):
                _write_values(file, piece)
                # Otherwise it would stay alive while the next one is computed.
                del piece
            assert file.tell() - begin == num_bytes(weight), weight.name
            written()


def _header(weights: Sequence[Weight]) -> bytes:
    """Return the length of the JSON as a little-endian uint64, then the JSON, padded with spaces."""
    entries = {}
    begin = 0
    for weight in weights:
        end = begin + num_bytes(weight)
        entries[weight.name] = {
            "dtype": _DTYPES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_values(file: BinaryIO, piece: Array) -> None:
    # As bytes, because Python's buffer protocol does not support bfloat16.
    file.write(piece.reshape(-1).view(np.uint8).data)

"""Reads GGUF files: header, metadata, and tensors dequantized to float32.

Runs in the build half, on any thread. The header is untrusted: every count and length is checked
against the file before anything is allocated, which the gguf package's own reader does not do. Only
the type table and the dequantizers come from that package. Knows no model.

Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from vinfer.errors import CheckpointError

MAX_METADATA_KEYS = 2**14
MAX_TENSORS = 2**17
MAX_STRINGS = 2**21
"""Total over all string arrays of a file; the largest tokenizers have 0.8 million tokens and merges."""
MAX_STRING_BYTES = 2**24
MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20

_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

_FLOAT_TYPES = ("F32", "F16", "BF16")
_QUANTISED_TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
SERVED_TYPES = frozenset(_FLOAT_TYPES + _QUANTISED_TYPES)


@dataclasses.dataclass(frozen=True, slots=True)
class GgufTensor:
    """The location of one tensor: `shape` in row-major order, `offset` and `num_bytes` in the file."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened file. Metadata values are int, float, bool, str, list[str] or numpy arrays."""

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]
    contents: npt.NDArray[np.uint8]
    """uint8 [file size], memory-mapped."""

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Dequantize one tensor to float32; its shape is that of `tensors[name]`."""
        tensor = self.tensors[name]
        stored = self.contents[tensor.offset : tensor.offset + tensor.num_bytes]
        rows = stored.reshape(*tensor.shape[:-1], -1)
        return np.asarray(dequantize(rows, tensor.type), dtype=np.float32)


def open_gguf(path: Path) -> GgufFile:
    """Map a file and read its header.

    Raises:
        CheckpointError: not GGUF, truncated, malformed, or with tensors of an unsupported type.
    """
    try:
        if path.stat().st_size < 24:
            raise CheckpointError(f"{path} is too short for a GGUF file: download it again")
        contents = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}: check `source`") from error
    header = _Header(path, contents)
    metadata, tensors = header.parse()
    return GgufFile(path, metadata, tensors, contents)


class _Header:
    """A cursor over the untrusted header; every read is limited to the file."""

    def __init__(self, path: Path, contents: npt.NDArray[np.uint8]) -> None:
        self._path = path
        self._buffer = contents.data
        self._position = 0
        self._num_strings = 0

    def parse(self) -> tuple[dict[str, object], dict[str, GgufTensor]]:
        if bytes(self._take(4)) != b"GGUF":
            raise self._error("does not begin with GGUF: it is not a GGUF file")
        version = self._integer("<I")
        if version & 0xFFFF == 0:
            raise self._error("is big-endian, which is unsupported: convert it to little-endian")
        if version not in (2, 3):
            raise self._error(f"is GGUF version {version}; supported versions: 2, 3")
        num_tensors = self._count("<Q", MAX_TENSORS, "tensors")
        num_keys = self._count("<Q", MAX_METADATA_KEYS, "metadata keys")
        metadata: dict[str, object] = {}
        for _ in range(num_keys):
            key = self._string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                raise self._error(f"has the metadata key {key!r} twice")
            metadata[key] = self._value(self._integer("<I"), key)
        places = [self._tensor_place() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._error(f"has general.alignment {alignment!r}, which is not a power of two")
        begin = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, type_, offset in places:
            if name in tensors:
                raise self._error(f"has the tensor {name!r} twice")
            tensors[name] = self._tensor(name, shape, type_, begin, offset, alignment)
        return metadata, tensors

    def _tensor_place(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor name", MAX_NAME_BYTES)
        num_dimensions = self._count("<I", MAX_DIMENSIONS, f"dimensions of {name!r}")
        shape = tuple(self._integer("<Q") for _ in range(num_dimensions))[::-1]
        return name, shape, self._integer("<I"), self._integer("<Q")

    def _tensor(
        self, name: str, shape: tuple[int, ...], type_: int, begin: int, offset: int, alignment: int
    ) -> GgufTensor:
        if not shape or 0 in shape:
            raise self._error(f"tensor {name!r} has the empty shape {list(shape)}")
        try:
            kind = GGMLQuantizationType(type_)
        except ValueError:
            raise self._error(f"tensor {name!r} has the unknown type {type_}") from None
        if kind.name not in SERVED_TYPES:
            raise self._error(
                f"tensor {name!r} has type {kind.name}; supported types: {', '.join(sorted(SERVED_TYPES))}"
            )
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block_elements:
            raise self._error(
                f"tensor {name!r} has rows of {shape[-1]}, not a multiple of the block size {block_elements}"
            )
        num_bytes = math.prod(shape) // block_elements * block_bytes
        if offset % alignment:
            raise self._error(
                f"tensor {name!r} lies at {offset}, not a multiple of the alignment {alignment}"
            )
        if begin + offset + num_bytes > len(self._buffer):
            raise self._error(
                f"tensor {name!r} ends at byte {begin + offset + num_bytes}, but the file has "
                f"{len(self._buffer)}: the download is incomplete; fetch it again"
            )
        return GgufTensor(shape, kind, begin + offset, num_bytes)

    def _value(self, type_: int, key: str) -> object:
        if type_ == _STRING:
            return self._string(key)
        if type_ == _ARRAY:
            return self._array(key)
        return self._scalars(type_, 1, key)[0].item()

    def _array(self, key: str) -> object:
        type_ = self._integer("<I")
        length = self._integer("<Q")
        if type_ != _STRING:
            return self._scalars(type_, length, key)
        self._num_strings += length
        if self._num_strings > MAX_STRINGS:
            raise self._error(
                f"{key} brings the number of strings in the file to {self._num_strings}; limit {MAX_STRINGS}"
            )
        return [self._string(key) for _ in range(length)]

    def _scalars(self, type_: int, length: int, key: str) -> npt.NDArray[Any]:
        if type_ not in _SCALARS:
            raise self._error(f"{key} has the value type {type_}, which is unknown or a nested array")
        dtype = np.dtype(_SCALARS[type_])
        return np.frombuffer(self._take(length * dtype.itemsize), dtype=dtype)

    def _string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        length = self._count("<Q", max_bytes, f"bytes of {what}")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8 text") from None

    def _count(self, layout: str, maximum: int, what: str) -> int:
        count = self._integer(layout)
        if count > maximum:
            raise self._error(f"claims {count} {what}; limit {maximum}")
        return count

    def _integer(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _take(self, num_bytes: int) -> memoryview:
        end = self._position + num_bytes
        if end > len(self._buffer):
            raise self._error(
                f"needs {num_bytes} bytes at {self._position}, but the file has {len(self._buffer)}: it is "
                "truncated or corrupt; fetch it again"
            )
        taken = self._buffer[self._position : end]
        self._position = end
        return taken

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {message}")

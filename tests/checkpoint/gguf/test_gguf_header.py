"""Malformed GGUF files: refused at once, with a clear message, without allocating what they claim."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from vinfer.checkpoint.gguf.file import SERVED_TYPES, open_gguf
from vinfer.errors import CheckpointError

HUGE = 2**63
UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10
F32 = 0


def _string(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def _key(name: str, type_: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", type_) + value


def _tensor(name: str, dims: list[int], type_: int = F32, offset: int = 0) -> bytes:
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, offset)


def _file(
    keys: list[bytes],
    tensors: list[bytes],
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    payload: int = 64,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(payload)


WELL_FORMED = _file(
    [
        _key("general.alignment", UINT32, struct.pack("<I", 32)),
        _key("names", ARRAY, struct.pack("<IQ", STRING, 2) + _string("a") + _string("b")),
        _key("numbers", ARRAY, struct.pack("<IQ3I", UINT32, 3, 1, 2, 3)),
        _key("flag", 7, b"\x01"),
        _key("ratio", 6, struct.pack("<f", 0.5)),
    ],
    [_tensor("one", [4, 2]), _tensor("two", [8], offset=32)],
)


def _open(path: Path, content: bytes) -> object:
    path.write_bytes(content)
    return open_gguf(path)


def test_a_well_formed_file_is_read(tmp_path: Path) -> None:
    content = WELL_FORMED[:-64] + struct.pack("<16f", *range(16))
    (tmp_path / "x.gguf").write_bytes(content)
    file = open_gguf(tmp_path / "x.gguf")
    assert file.metadata["names"] == ["a", "b"]
    assert list(file.metadata["numbers"]) == [1, 2, 3]
    assert (file.metadata["flag"], file.metadata["ratio"]) == (True, 0.5)
    np.testing.assert_array_equal(file.read("one"), np.arange(8, dtype=np.float32).reshape(2, 4))
    np.testing.assert_array_equal(file.read("two"), np.arange(8, 16, dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
        (_file([], [], version=1), "GGUF version 1; supported versions: 2, 3"),
        (_file([], [], version=0x03000000), "big-endian"),
        (_file([], [], num_keys=HUGE), f"claims {HUGE} metadata keys"),
        (_file([], [], num_tensors=HUGE), f"claims {HUGE} tensors"),
        (_file([], [], num_keys=1000), "the metadata key '' twice"),
        (_file([struct.pack("<Q", HUGE)], []), "bytes of a metadata key"),
        (_file([_key("k", STRING, struct.pack("<Q", 2**62))], []), f"claims {2**62} bytes of k"),
        (_file([_key("k", ARRAY, struct.pack("<IQ", UINT64, 2**60))], []), "truncated or corrupt"),
        (_file([_key("k", ARRAY, struct.pack("<IQ", STRING, 2**60))], []), "limit"),
        (_file([_key("k", ARRAY, struct.pack("<IQ", ARRAY, 1))], []), "nested array"),
        (_file([_key("k", 99, b"")], []), "value type 99"),
        (_file([_key("k", STRING, _string(b"\xff\xfe"))], []), "not UTF-8"),
        (_file([_key("k", 7, b"\x01"), _key("k", 7, b"\x01")], []), "'k' twice"),
        (
            _file([_key("general.alignment", UINT32, struct.pack("<I", 0))], []),
            "alignment 0, which is not a power",
        ),
        (_file([_key("general.alignment", UINT32, struct.pack("<I", 24))], []), "alignment 24"),
        (_file([_key("general.alignment", UINT32, struct.pack("<I", 2**31))], []), "alignment"),
        (_file([_key("general.alignment", STRING, _string("32"))], []), "alignment '32'"),
        (_file([], [_tensor("t", [8]), _tensor("t", [8])]), "'t' twice"),
        (_file([], [_tensor("t", [])]), "empty shape"),
        (_file([], [_tensor("t", [0])]), "empty shape"),
        (_file([], [_tensor("t", [1] * 5)]), "claims 5 dimensions"),
        (_file([], [_tensor("t", [2**63, 2**63])]), "but the file has"),
        (_file([], [_tensor("t", [17])]), "but the file has"),
        (_file([], [_tensor("t", [8], offset=2**62)]), "but the file has"),
        (_file([], [_tensor("t", [8], offset=4)]), "multiple of the alignment 32"),
        (_file([], [_tensor("t", [8], type_=77)]), "unknown type 77"),
        (_file([], [_tensor("t", [8], type_=26)]), "type I32; supported types"),
        (_file([], [_tensor("t", [8], type_=2)]), "not a multiple of the block size 32"),
    ],
)
def test_a_malformed_header_is_refused_without_allocating(
    tmp_path: Path, content: bytes, message: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            _open(tmp_path / "x.gguf", content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_no_truncation_is_accepted(tmp_path: Path) -> None:
    for length in range(len(WELL_FORMED)):
        with pytest.raises(CheckpointError):
            _open(tmp_path / "x.gguf", WELL_FORMED[:length])


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WELL_FORMED)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(4, len(content) - 1))
        damage = data.draw(st.binary(min_size=1, max_size=8))
        content[position : position + len(damage)] = damage
    try:
        file = _open(tmp_path / "x.gguf", bytes(content))
    except CheckpointError:
        return
    assert file is not None


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400))
def test_random_bytes_after_the_magic_are_refused(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(CheckpointError):
        _open(tmp_path / "x.gguf", b"GGUF" + struct.pack("<I", 3) + b"\x01" + tail)


@pytest.mark.parametrize("type_name", sorted(SERVED_TYPES))
def test_every_served_type_dequantises_to_its_shape(tmp_path: Path, type_name: str) -> None:
    type_ = gguf.GGMLQuantizationType[type_name]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    columns = max(block_elements, 8)
    num_bytes = 3 * columns // block_elements * block_bytes
    (tmp_path / "x.gguf").write_bytes(_file([], [_tensor("t", [columns, 3], type_)], payload=num_bytes))
    values = open_gguf(tmp_path / "x.gguf").read("t")
    assert (values.dtype, values.shape) == (np.float32, (3, columns))
    assert np.isfinite(values).all()

"""Records: what comes out is what went in, and what was changed on the way is refused, and runs nothing."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.bundle.manifest import ArraySpec, Manifest, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.hosts.record import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    Kind,
    RecordError,
    RecordFormat,
    signal_record,
)
from vinfer.hosts.repeater import Repeater

SET_SLOT = ProgramShape(kind="set_slot")
PREFILL = ProgramShape(kind="prefill", rows=1, length=8)


def array(name: str, dtype: str, *shape: int) -> ArraySpec:
    return ArraySpec(name=name, shape=shape, dtype=dtype)


def program(shape: ProgramShape, *inputs: ArraySpec) -> ProgramSpec:
    return ProgramSpec(shape=shape, file="x", inputs=inputs, outputs=())


MANIFEST = Manifest.model_construct(
    programs=(
        program(
            SET_SLOT, array("slot", "int32"), array("wants_logprobs", "bool"), array("seed", "uint32", 2)
        ),
        program(
            PREFILL,
            array("tokens", "int32", 1, 8),
            array("grammar_mask", "uint32", 1, 3),
            array("image_features", "float32", 4, 2),
        ),
    )
)
FORMAT = RecordFormat([MANIFEST, MANIFEST])
ROW = {"slot": np.int32(3), "wants_logprobs": np.bool_(True), "seed": np.array([1, 2**32 - 1], np.uint32)}
TOKENS = np.arange(8, dtype=np.int32).reshape(1, 8)
ON_DEVICE = object()
"""Stands for an array on the devices."""
CHUNK = {"tokens": TOKENS, "grammar_mask": ON_DEVICE, "image_features": ON_DEVICE}
RECORDS = (
    FORMAT.encode(0, 0, SET_SLOT, ROW),
    FORMAT.encode(0, 1, PREFILL, CHUNK),
    FORMAT.encode(0, 1, PREFILL, {**CHUNK, "grammar_mask": np.full((1, 3), 7, np.uint32)}),
    signal_record(0, Kind.PING),
)


class Model:
    """Counts what is run."""

    def __init__(self) -> None:
        self.ran: list[tuple[ProgramShape, dict[str, Any]]] = []

    def held_input(self, shape: ProgramShape, name: str) -> object:
        return ON_DEVICE

    def run(self, shape: ProgramShape, inputs: dict[str, Any]) -> dict[str, Any]:
        self.ran.append((shape, inputs))
        return {}


def repeater() -> tuple[Repeater, list[Any]]:
    made, models = Repeater(), [Model(), Model()]
    for model in models:
        made.add(MANIFEST, model)  # type: ignore[arg-type]
    return made, models


def test_a_record_comes_out_as_it_went_in() -> None:
    ours, models = repeater()
    ours.repeat(FORMAT.encode(0, 0, SET_SLOT, ROW))
    ours.repeat(signal_record(1, Kind.PING))
    ours.repeat(FORMAT.encode(2, 1, PREFILL, CHUNK))
    [(shape, row)] = models[0].ran
    assert shape == SET_SLOT
    assert {name: value.tolist() for name, value in row.items()} == {
        name: value.tolist() for name, value in ROW.items()
    }
    assert {name: value.dtype for name, value in row.items()} == {n: v.dtype for n, v in ROW.items()}
    [(shape, chunk)] = models[1].ran
    assert shape == PREFILL
    np.testing.assert_array_equal(chunk["tokens"], TOKENS)
    assert chunk["grammar_mask"] is chunk["image_features"] is ON_DEVICE
    assert (ours.number, ours.num_programs) == (3, 2)


@given(st.sampled_from(RECORDS), st.data())
def test_a_changed_record_runs_nothing(record: bytes, data: st.DataObject) -> None:
    """What is inside an array may be any number; everything else may be only what the manifest says."""
    kind = data.draw(st.sampled_from(["cut", "longer", "header", "noise", "number"]))
    changed = bytearray(record)
    if kind == "cut":
        changed = changed[: data.draw(st.integers(0, len(record) - 1))]
    elif kind == "longer":
        changed += data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "header":
        place = data.draw(st.integers(0, HEADER_BYTES - 1))
        changed[place] ^= data.draw(st.integers(1, 255))
    elif kind == "noise":
        changed = bytearray(data.draw(st.binary(max_size=200)))
    else:
        changed[4:12] = struct.pack("<Q", data.draw(st.integers(1, 2**64 - 1)))
    ours, models = repeater()
    try:
        ours.repeat(bytes(changed))
    except RecordError:
        assert [model.ran for model in models] == [[], []]
        assert ours.number == 0
    else:
        # A header that names another program of the same size, or a signal of another kind.
        assert kind == "header"
        assert len(changed) in {len(other) for other in RECORDS}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"", "less than a header"),
        (b"xx" + RECORDS[0][2:], "does not begin"),
        (RECORDS[0][:2] + b"\x09" + RECORDS[0][3:], "does not begin"),
        (RECORDS[0][:3] + b"\x09" + RECORDS[0][4:], "of kind 9"),
        (FORMAT.encode(5, 0, SET_SLOT, ROW), "record 5 came when 0 was due"),
        (RECORDS[0][:12] + b"\x02\x00" + RECORDS[0][14:], "program 0 of model 2"),
        (RECORDS[0][:14] + b"\x02\x00" + RECORDS[0][16:], "program 2 of model 0"),
        (RECORDS[0][:16] + b"\x01\x00\x00\x00" + RECORDS[0][20:], "leaves out inputs of set_slot"),
        (RECORDS[0][:-1], r"has \d+ bytes; set_slot takes \d+"),
        (RECORDS[0][:24] + b"\x02" + RECORDS[0][25:], "other than 0 and 1 for wants_logprobs"),
        (RECORDS[3] + b"x", "a signal with more"),
    ],
)
def test_what_is_wrong_is_said(record: bytes, problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        FORMAT.decode(record, number=0)


@pytest.mark.parametrize("value", [np.int64(3), np.zeros(1, np.int32)], ids=["type", "shape"])
def test_the_leader_sends_only_what_the_manifest_says(value: Any) -> None:
    with pytest.raises(RecordError, match=r"input slot of set_slot is int\d+\[.*the manifest says int32\[\]"):
        FORMAT.encode(0, 0, SET_SLOT, {**ROW, "slot": value})


def test_a_program_whose_record_would_be_too_large_is_refused_at_once() -> None:
    large = program(PREFILL, array("pixels", "float32", MAX_RECORD_BYTES // 4))
    with pytest.raises(Exception, match="do not fit into a record"):
        RecordFormat([Manifest.model_construct(programs=(large,))])

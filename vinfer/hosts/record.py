"""The records of the stream from the leader to its followers: one per dispatch, and some kinds of signals.

    2 bytes  b"vr"            8 bytes  number of the record, from 0
    1 byte   version          2 bytes  model, by its place in the config
    1 byte   kind             2 bytes  program, by its place in the manifest
                              4 bytes  bits of the inputs that followers hold already

All numbers are little-endian. The inputs that are not held follow, in the manifest's order, as raw bytes.
Their sizes are not in the record: both sides know them from the manifest. Nothing in a record is code, and
nothing runs unless all of it is as expected. Pure functions.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vinfer.bundle.manifest import ArraySpec, Manifest, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.loading.loaded_model import HELD_INPUTS
from vinfer.errors import EngineError

MAGIC = b"vr"
VERSION = 1
_HEADER = struct.Struct("<2sBBQHHI")
HEADER_BYTES = _HEADER.size
MAX_RECORD_BYTES = 1 << 30


class Kind(enum.IntEnum):
    """What a record asks for."""

    PROGRAM = 1
    PING = 2
    """Nothing but an answer."""
    READY = 3
    """All models are loaded everywhere: probes may say so."""
    STOP = 4
    """The last record: end with exit code 0."""
    FAIL = 5
    """The last record of a group that has failed."""


class RecordError(EngineError):
    """A record that is not what the leader of this group would send."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record, decoded.

    Attributes:
        model: place of the model in the config.
        shape: the program; None for a signal.
        inputs: arrays by name; those in `held` are left out.
        held: inputs that the follower holds already.
    """

    kind: Kind
    number: int
    model: int = 0
    shape: ProgramShape | None = None
    inputs: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    held: tuple[str, ...] = ()


class _Layout:
    """The inputs of one program, as a record has them."""

    def __init__(self, program: ProgramSpec) -> None:
        self.program = program
        self.inputs = [(spec, np.dtype(spec.dtype), _num_bytes(spec)) for spec in program.inputs]
        self.can_be_held = sum(
            1 << place for place, spec in enumerate(program.inputs) if spec.name in HELD_INPUTS
        )

    def num_bytes(self, held: int) -> int:
        return sum(size for place, (_, _, size) in enumerate(self.inputs) if not held >> place & 1)


class RecordFormat:
    """Writes and reads the records of some models.

    Args:
        manifests: of all models, in the order of the config; more may be added by `add`.
    """

    def __init__(self, manifests: Sequence[Manifest] = ()) -> None:
        self._layouts: list[list[_Layout]] = []
        self._places: list[dict[ProgramShape, int]] = []
        for manifest in manifests:
            self.add(manifest)

    def add(self, manifest: Manifest) -> None:
        """Know one more model.

        Raises:
            EngineError: a record for one of its programs would be too large.
        """
        layouts = [_Layout(program) for program in manifest.programs]
        for layout in layouts:
            if len(layout.inputs) > 32 or HEADER_BYTES + layout.num_bytes(0) > MAX_RECORD_BYTES:
                raise EngineError(
                    f"the inputs of {layout.program.shape.name} do not fit into a record of "
                    f"{MAX_RECORD_BYTES} bytes: lower models[].precompile"
                )
        self._layouts.append(layouts)
        self._places.append({layout.program.shape: place for place, layout in enumerate(layouts)})

    def encode(self, number: int, model: int, shape: ProgramShape, inputs: Mapping[str, Any]) -> bytes:
        """Return the record of a dispatch.

        Args:
            inputs: by name; whatever is not a NumPy array or scalar is held by followers.

        Raises:
            RecordError: an input has another shape or type than the manifest says.
        """
        place = self._places[model][shape]
        held = 0
        parts = [b""]
        for position, (spec, dtype, _) in enumerate(self._layouts[model][place].inputs):
            value = inputs[spec.name]
            if not isinstance(value, np.ndarray | np.generic):
                held |= 1 << position
                continue
            if value.dtype != dtype or value.shape != spec.shape:
                raise RecordError(
                    f"input {spec.name} of {shape.name} is {value.dtype}{list(value.shape)}; the manifest "
                    f"says {spec.dtype}{list(spec.shape)}"
                )
            parts.append(value.tobytes())
        parts[0] = _HEADER.pack(MAGIC, VERSION, Kind.PROGRAM, number, model, place, held)
        return b"".join(parts)

    def decode(self, content: bytes | memoryview, *, number: int) -> Record:
        """Return the record of some bytes.

        Args:
            number: the one that is due.

        Raises:
            RecordError: it is another number, or anything in it is not as the manifests say.
        """
        kind, model, place, held = self._header(content, number)
        if kind != Kind.PROGRAM:
            return Record(kind, number)
        layout = self._layouts[model][place]
        if held & ~layout.can_be_held:
            raise RecordError(f"record {number} leaves out inputs of {layout.program.shape.name}")
        expected = HEADER_BYTES + layout.num_bytes(held)
        if len(content) != expected:
            raise RecordError(
                f"record {number} has {len(content)} bytes; {layout.program.shape.name} takes {expected}"
            )
        inputs, names, start = {}, [], HEADER_BYTES
        for position, (spec, dtype, size) in enumerate(layout.inputs):
            if held >> position & 1:
                names.append(spec.name)
                continue
            flat = np.frombuffer(content, dtype, math.prod(spec.shape), start)
            if dtype == np.bool_ and flat.view(np.uint8).max(initial=0) > 1:
                raise RecordError(f"record {number} has values other than 0 and 1 for {spec.name}")
            inputs[spec.name] = flat.reshape(spec.shape)
            start += size
        return Record(kind, number, model, layout.program.shape, inputs, tuple(names))

    def _header(self, content: bytes | memoryview, number: int) -> tuple[Kind, int, int, int]:
        if len(content) < HEADER_BYTES:
            raise RecordError(f"record {number} has {len(content)} bytes, which is less than a header")
        magic, version, kind, found, model, place, held = _HEADER.unpack_from(content)
        if magic != MAGIC or version != VERSION:
            raise RecordError(f"record {number} does not begin as one of version {VERSION} does")
        if found != number:
            raise RecordError(f"record {found} came when {number} was due")
        if kind not in tuple(Kind):
            raise RecordError(f"record {number} is of kind {kind}, which there is not")
        if kind == Kind.PROGRAM and not (model < len(self._layouts) and place < len(self._layouts[model])):
            raise RecordError(f"record {number} names program {place} of model {model}, which there is not")
        if kind != Kind.PROGRAM and (len(content) != HEADER_BYTES or model or place or held):
            raise RecordError(f"record {number} is a signal with more than a header")
        return Kind(kind), model, place, held


def signal_record(number: int, kind: Kind) -> bytes:
    """Return a record without a program."""
    return _HEADER.pack(MAGIC, VERSION, kind, number, 0, 0, 0)


def _num_bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize

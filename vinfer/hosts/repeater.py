"""Repeats dispatches from their records: checks a record, and only then enqueues its program. One thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vinfer.bundle.manifest import Manifest
from vinfer.engine.loading.loaded_model import LoadedModel
from vinfer.hosts.record import Kind, RecordFormat


@dataclasses.dataclass(frozen=True, slots=True)
class Repeated:
    """What became of a record.

    Attributes:
        outputs: arrays on the devices; empty for a signal.
    """

    number: int
    kind: Kind
    outputs: Mapping[str, Any]


class Repeater:
    """The models of a follower, in the order of the config."""

    def __init__(self) -> None:
        self._format = RecordFormat()
        self._models: list[LoadedModel] = []
        self._number = 0
        self.num_programs = 0

    @property
    def number(self) -> int:
        """The number of the record that is due."""
        return self._number

    def add(self, manifest: Manifest, model: LoadedModel) -> None:
        """Take one more model; call it before the first record of it can come."""
        self._models.append(model)
        self._format.add(manifest)

    def repeat(self, content: bytes) -> Repeated:
        """Do what a record says.

        Raises:
            RecordError: it is not as it should be; nothing has run.
        """
        record = self._format.decode(content, number=self._number)
        outputs: Mapping[str, Any] = {}
        if record.shape is not None:
            model = self._models[record.model]
            held = {name: model.held_input(record.shape, name) for name in record.held}
            outputs = model.run(record.shape, {**record.inputs, **held})
            self.num_programs += 1
        self._number += 1
        return Repeated(record.number, record.kind, outputs)

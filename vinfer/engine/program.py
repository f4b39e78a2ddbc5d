"""A compiled program and the names of its inputs and outputs: nobody relies on their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from vinfer.bundle.manifest import ArraySpec, ProgramSpec
from vinfer.errors import BundleError

Arrays = tuple[Any, ...]
"""Arrays on the devices, in the manifest's order."""


class Compiled(Protocol):
    """What XLA made of a program: (weights, kv, state, inputs) -> (kv, state, outputs), all in order."""

    def __call__(self, weights: Arrays, kv: Arrays, state: Arrays, inputs: tuple[Any, ...]) -> Any: ...

    def memory_analysis(self) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program that can be enqueued.

    Attributes:
        spec: says the names and shapes of its inputs and outputs.
    """

    spec: ProgramSpec
    compiled: Compiled

    @property
    def inputs(self) -> dict[str, ArraySpec]:
        """Return the specs of the inputs, by name."""
        return {spec.name: spec for spec in self.spec.inputs}

    def run(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Mapping[str, Any]
    ) -> tuple[Arrays, Arrays, dict[str, Any]]:
        """Enqueue it; return the new kv and state, and the outputs by name.

        Raises:
            BundleError: the program has other inputs than these.
        """
        if len(inputs) != len(self.spec.inputs):
            raise self._unlike(inputs)
        try:
            ordered = tuple(inputs[spec.name] for spec in self.spec.inputs)
        except KeyError:
            raise self._unlike(inputs) from None
        kv, state, outputs = self.compiled(weights, kv, state, ordered)
        return kv, state, {spec.name: out for spec, out in zip(self.spec.outputs, outputs, strict=True)}

    def filled(self, name: str, value: int) -> np.ndarray[Any, Any]:
        """Return an array for an input, with one value everywhere."""
        spec = self.inputs[name]
        return np.full(spec.shape, value, spec.dtype)

    def _unlike(self, given: Mapping[str, Any]) -> BundleError:
        wanted = {spec.name for spec in self.spec.inputs}
        parts = [
            f"{what} {', '.join(sorted(names))}"
            for what, names in (("needs", wanted - given.keys()), ("does not know", given.keys() - wanted))
            if names
        ]
        return BundleError(
            f"program {self.spec.shape.name} {' and '.join(parts)}: "
            "the bundle is of another version of vinfer; run vinfer precompile again"
        )

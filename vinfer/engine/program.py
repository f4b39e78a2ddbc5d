"""A compiled program and the names of its inputs and outputs: nobody relies on their order."""

from __future__ import annotations

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


class Program:
    """A program that can be enqueued.

    Attributes:
        spec: says the names and shapes of its inputs and outputs.
        inputs: the specs of the inputs, by name.
    """

    def __init__(self, spec: ProgramSpec, compiled: Compiled) -> None:
        self.spec = spec
        self.compiled = compiled
        self.inputs: dict[str, ArraySpec] = {each.name: each for each in spec.inputs}

    def run(
        self, weights: Arrays, kv: Arrays, state: Arrays, inputs: Mapping[str, Any]
    ) -> tuple[Arrays, Arrays, dict[str, Any]]:
        """Enqueue it; return the new kv and state, and the outputs by name.

        Raises:
            BundleError: the program has other inputs than these.
        """
        if inputs.keys() != self.inputs.keys():
            raise self._unlike(inputs)
        ordered = tuple(inputs[name] for name in self.inputs)
        kv, state, outputs = self.compiled(weights, kv, state, ordered)
        return kv, state, {spec.name: out for spec, out in zip(self.spec.outputs, outputs, strict=True)}

    def filled(self, name: str, value: int) -> np.ndarray[Any, Any]:
        """Return an array for an input, with one value everywhere."""
        spec = self.inputs[name]
        return np.full(spec.shape, value, spec.dtype)

    def _unlike(self, given: Mapping[str, Any]) -> BundleError:
        wanted = self.inputs.keys()
        parts = [
            f"{what} {', '.join(sorted(names))}"
            for what, names in (("needs", wanted - given.keys()), ("does not know", given.keys() - wanted))
            if names
        ]
        return BundleError(
            f"program {self.spec.shape.name} {' and '.join(parts)}: "
            "the bundle is of another version of vinfer; run vinfer precompile again"
        )

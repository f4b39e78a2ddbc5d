"""Programs are run by the names of their inputs and outputs, whatever their order."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.bundle.manifest import ArraySpec, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.program import Arrays, Program
from vinfer.errors import BundleError

GIVEN = {"slots": 1, "tokens": 2, "mask": 3}


class Echo:
    """Outputs its inputs."""

    def __call__(self, weights: Arrays, kv: Arrays, state: Arrays, inputs: tuple[Any, ...]) -> Any:
        return kv, state, inputs

    def memory_analysis(self) -> Any:
        raise NotImplementedError


def program(*inputs: str) -> Program:
    specs = tuple(ArraySpec(name=name, shape=(2,), dtype="int32") for name in inputs)
    shape = ProgramShape(kind="prefill", rows=1, length=32)
    return Program(ProgramSpec(shape=shape, file="x", inputs=specs, outputs=specs), Echo())


@pytest.mark.parametrize("order", [("slots", "tokens", "mask"), ("mask", "slots", "tokens")])
def test_inputs_and_outputs_are_found_by_name(order: tuple[str, ...]) -> None:
    assert program(*order).run((), (5,), (6,), GIVEN) == ((5,), (6,), GIVEN)
    assert program(*order).compiled((), (), (), order)[2] == order


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (("slots", "ids", "mask"), "needs ids and does not know tokens"),
        (("slots", "tokens", "mask", "a", "b"), "needs a, b"),
        (("slots", "tokens"), "does not know mask"),
    ],
)
def test_other_inputs_are_refused_by_name(inputs: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        program(*inputs).run((), (), (), GIVEN)
    assert str(caught.value) == (
        f"program prefill[1,32] {problem}: "
        "the bundle is of another version of vinfer; run vinfer precompile again"
    )

"""A weight file equals what safetensors would write, but is made without holding all values."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from vinfer.compiler.export.weight_file import num_bytes, write_weight_file
from vinfer.compiler.weights import Part, Weight, in_stored_order
from vinfer.errors import BuildError

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def _weight(
    name: str, shape: tuple[int, ...], dtype: str, *parts: Part, joined_rows: tuple[int, ...] = ()
) -> Weight:
    return Weight(
        name=name, shape=shape, dtype=dtype, axes=(), parts=parts or (Part(name),), joined_rows=joined_rows
    )


def _random(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("stored", list(DTYPES))
@pytest.mark.parametrize("wanted", list(DTYPES))
def test_every_kind_of_weight_is_read_back(tmp_path: Path, stored: str, wanted: str) -> None:
    tensors = {
        "linear": _random(6, 10, dtype=DTYPES[stored]),
        "fused": _random(9, 4, dtype=DTYPES[stored]),
        "norm": _random(7, dtype=DTYPES[stored]),
        "scalar": np.array(1.5, DTYPES[stored]),
        "nothing": np.zeros((0, 3), DTYPES[stored]),
        **{f"expert{index}": _random(3, 4 + index, dtype=DTYPES[stored])[:, :4] for index in range(3)},
    }
    weights = [
        _weight("a.kernel", (10, 6), wanted, Part("linear", is_transposed=True)),
        _weight("b.kernel", (4, 3), wanted, Part("fused", (slice(3, 6),), is_transposed=True)),
        _weight("norm", (7,), wanted),
        _weight("scalar", (), wanted),
        _weight("nothing", (0, 3), wanted),
        _weight("experts", (3, 3, 4), wanted, *(Part(f"expert{index}") for index in range(3))),
        _weight(
            "joined",
            (15, 10),
            wanted,
            *(Part("linear", index) for index in (None, (slice(1, 4),), None)),
            joined_rows=(6, 3, 6),
        ),
    ]
    expected = {
        "a.kernel": tensors["linear"].T,
        "b.kernel": tensors["fused"][3:6].T,
        "norm": tensors["norm"],
        "scalar": tensors["scalar"],
        "nothing": tensors["nothing"],
        "experts": np.stack([tensors[f"expert{index}"] for index in range(3)]),
        "joined": np.concatenate([tensors["linear"], tensors["linear"][1:4], tensors["linear"]]),
    }
    done: list[int] = []
    path = tmp_path / "w.safetensors"
    write_weight_file(path, weights, tensors.__getitem__, written=lambda: done.append(1))
    assert len(done) == len(weights)
    found = load_file(path)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == DTYPES[wanted]
        np.testing.assert_array_equal(found[name], values.astype(DTYPES[wanted]))


def test_the_file_is_what_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    values = np.array([[1, 2, 3]], np.float32)
    write_weight_file(path, [_weight("w", (1, 3), "float32")], lambda _: values, written=lambda: None)
    written = path.read_bytes()
    length = int.from_bytes(written[:8], "little")
    assert (8 + length) % 8 == 0
    assert json.loads(written[8 : 8 + length]) == {
        "w": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]}
    }
    assert written[8:9] == b"{"
    assert written[8 + length :] == values.tobytes()


def test_a_file_costs_the_memory_of_one_tensor(tmp_path: Path) -> None:
    """The writer once held a whole file, 2 GiB, plus NumPy's stack of the experts and its parts."""
    rows, columns, num_experts = 512, 1024, 8
    tensor_bytes = rows * columns * 4
    weights = [
        _weight(
            f"experts{index}",
            (num_experts, columns, rows),
            "float32",
            *(Part(f"{index}.{expert}", is_transposed=True) for expert in range(num_experts)),
        )
        for index in range(2)
    ]
    weights += [_weight(f"linear{index}", (rows, columns), "float32") for index in range(8)]

    def read(_: str) -> np.ndarray[Any, Any]:
        return np.ones((rows, columns), np.float32)

    read("warm up")
    gc.collect()
    tracemalloc.start()
    try:
        write_weight_file(tmp_path / "w.safetensors", weights, read, written=lambda: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A transposed copy needs its original.
    assert 2 * tensor_bytes <= peak < 2.5 * tensor_bytes
    assert sum(num_bytes(weight) for weight in weights) == 24 * tensor_bytes


def test_a_piece_is_gone_before_the_next_is_read(tmp_path: Path) -> None:
    alive = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None or not isinstance(self.base, Counted)

    def read(_: str) -> np.ndarray[Any, Any]:
        nonlocal alive
        assert alive == 0
        alive += 1
        return np.ones((4, 4), np.float32).view(Counted)

    weights = [
        _weight("stacked", (3, 4, 4), "float32", *(Part(str(index)) for index in range(3))),
        _weight("alone", (4, 4), "float32"),
    ]
    write_weight_file(tmp_path / "w.safetensors", weights, read, written=lambda: None)
    assert alive == 0


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (_weight("w", (3, 2), "float32"), r"tensor w gives shape \(2, 3\); w needs \(3, 2\)"),
        (_weight("ghost", (3, 2), "float32"), "no tensor ghost, which ghost needs"),
        (
            _weight("j", (5, 3), "float32", Part("w"), Part("w"), joined_rows=(2, 3)),
            r"tensor w gives shape \(2, 3\); j needs \(3, 3\)",
        ),
        (
            _weight("j", (4, 3), "float32", Part("w"), Part("w", is_transposed=True), joined_rows=(2, 2)),
            r"tensor w gives shape \(3, 2\); j needs \(2, 3\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(tmp_path: Path, weight: Weight, message: str) -> None:
    tensors = {"w": np.ones((2, 3), np.float32)}
    with pytest.raises(BuildError, match=message):
        write_weight_file(tmp_path / "w.safetensors", [weight], tensors.__getitem__, written=lambda: None)


def test_weights_are_written_in_the_order_in_which_they_are_stored() -> None:
    weights = [_weight(name, (1,), "float32") for name in ("a", "lost", "b")]
    stacked = _weight("experts", (2, 1), "float32", Part("z"), Part("a"))
    ordered = in_stored_order([*weights, stacked], ["z", "b", "a"])
    assert [weight.name for weight in ordered] == ["experts", "b", "a", "lost"]

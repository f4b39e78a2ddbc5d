"""From tensors of a checkpoint to one weight argument of the programs.

Says where each weight comes from as data, so that the writer can stream it piece by piece. Knows neither
files nor EasyDeL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vinfer.bundle.manifest import PartitionAxes
from vinfer.errors import BuildError

Array = npt.NDArray[Any]
Read = Callable[[str], Array]
"""Gives the tensor of a name, as the checkpoint stores it; KeyError where there is none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of a checkpoint, or what `index` takes of it.

    Attributes:
        source: tensor name in the checkpoint.
        index: applied to the tensor as it is stored; None takes it whole.
        is_transposed: the last two axes change places, after `index`: a Linear is stored [out, in] and the
            programs take [in, out].
    """

    source: str
    index: tuple[int | slice | EllipsisType, ...] | None = None
    is_transposed: bool = False

    def take(self, read: Read) -> Array:
        array = read(self.source)
        if self.index is not None:
            array = array[self.index]
        return array.swapaxes(-1, -2) if self.is_transposed else array


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight argument of the programs.

    Attributes:
        name: EasyDeL's path, joined by dots.
        axes: a PartitionSpec that the mesh really divides.
        parts: one part is the weight; several are stacked along a new first axis, as experts are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes
    parts: tuple[Part, ...]

    def pieces(self, read: Read) -> Iterator[Array]:
        """Yield the weight's values in its dtype, in C order, one part at a time.

        Nothing here keeps a piece that was yielded.

        Raises:
            BuildError: the checkpoint lacks a tensor, or one has another shape than the model needs.
        """
        for part in self.parts:
            yield self._piece(part, read)

    def _piece(self, part: Part, read: Read) -> Array:
        try:
            array = part.take(read)
        except KeyError:
            raise BuildError(f"the checkpoint has no tensor {part.source}, which {self.name} needs") from None
        expected = self.shape[1:] if len(self.parts) > 1 else self.shape
        if array.shape != expected:
            raise BuildError(
                f"tensor {part.source} gives shape {array.shape}, {self.name} needs {expected}: "
                "config.json and the weights do not belong together"
            )
        dtype = ml_dtypes.bfloat16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        # Dtype and order in one pass: two would hold the tensor three times.
        return array.astype(dtype, order="C", copy=False)


def in_stored_order(weights: Sequence[Weight], tensor_names: Sequence[str]) -> list[Weight]:
    """Sort weights by where the checkpoint stores their first part, so that its files are read in one go.

    Args:
        tensor_names: of the checkpoint, in the order in which they are stored.
    """
    places = {name: place for place, name in enumerate(tensor_names)}
    # A tensor that is missing is reported when it is read.
    return sorted(weights, key=lambda weight: places.get(weight.parts[0].source, len(places)))

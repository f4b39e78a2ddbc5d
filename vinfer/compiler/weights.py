"""Maps tensors of a checkpoint to one weight argument of the programs.

Describes the source of each weight as data, so that the writer can stream it piece by piece. Knows neither
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
"""Returns the tensor of a name as stored in the checkpoint; KeyError if there is none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of a checkpoint, or the part that `index` selects.

    Attributes:
        source: tensor name in the checkpoint.
        index: applied to the stored tensor; None means the whole tensor.
        is_transposed: swap the last two axes after `index`: a Linear is stored as [out, in] and programs take
            [in, out].
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
        axes: a PartitionSpec whose axes divide the shape.
        parts: one part is the whole weight; several are stacked along a new first axis, like experts.
        joined_rows: if it is not empty, parts stand one after the other instead: rows of each.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes
    parts: tuple[Part, ...]
    joined_rows: tuple[int, ...] = ()

    def pieces(self, read: Read) -> Iterator[Array]:
        """Yield the weight's values in its dtype, in C order, one part at a time.

        Yielded pieces are not kept.

        Raises:
            BuildError: the checkpoint lacks a tensor, or a tensor has the wrong shape for the model.
        """
        shapes = [self.shape[1:]] * len(self.parts)
        if self.joined_rows:
            shapes = [(num_rows, *self.shape[1:]) for num_rows in self.joined_rows]
        elif len(self.parts) == 1:
            shapes = [self.shape]
        for part, shape in zip(self.parts, shapes, strict=True):
            yield self._piece(self._taken(part, read), part.source, shape)

    def _taken(self, part: Part, read: Read) -> Array:
        try:
            return part.take(read)
        except KeyError:
            raise BuildError(f"the checkpoint has no tensor {part.source}, which {self.name} needs") from None

    def _piece(self, array: Array, source: str, expected: tuple[int, ...]) -> Array:
        if array.shape != expected:
            raise BuildError(
                f"tensor {source} gives shape {array.shape}; {self.name} needs {expected}: "
                "config.json and the weights belong to different models"
            )
        dtype = ml_dtypes.bfloat16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        # Convert dtype and order in one pass: two passes would hold the tensor three times.
        return array.astype(dtype, order="C", copy=False)


def in_stored_order(weights: Sequence[Weight], tensor_names: Sequence[str]) -> list[Weight]:
    """Sort weights by where the checkpoint stores their first part, so that its files are read in order.

    Args:
        tensor_names: tensor names of the checkpoint, in stored order.
    """
    places = {name: place for place, name in enumerate(tensor_names)}
    # A missing tensor is reported when it is read.
    return sorted(weights, key=lambda weight: places.get(weight.parts[0].source, len(places)))

"""Reads experts stored as 4-bit floats with one scale per block of 32 (MXFP4), as in gpt-oss.

Runs in the build half, on any thread. A weight becomes bfloat16, which holds every such value exactly, and
then the dtype of the build. Names identify the tensors: `x_blocks` and `x_scales` together
are `x`.

Source: OCP Microscaling Formats 1.0; transformers 5.5, `integrations/mxfp4.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.hf.safetensors_file import StoredTensor
from vinfer.checkpoint.layout import Shape
from vinfer.errors import CheckpointError

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES = 16
"""Bytes per block: each holds two values, the lower four bits first."""
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_SCALE_BIAS = 127


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Tensor:
    """A stack of matrices stored as two tensors.

    Attributes:
        blocks: uint8 [experts, out, in / 32, 16].
        scales: uint8 [experts, out, in / 32], exponents of 2 plus 127.
    """

    blocks: StoredTensor
    scales: StoredTensor

    @property
    def dtype(self) -> str:
        """Safetensors name of the dtype that `read` returns."""
        return "BF16"

    @property
    def shape(self) -> Shape:
        """[experts, in, out]: gpt-oss multiplies by its stacks without transposing."""
        experts, num_outputs, num_blocks, _ = self.blocks.shape
        return (experts, num_blocks * _BYTES * 2, num_outputs)

    def read(self) -> npt.NDArray[Any]:
        result = np.empty(self.shape, ml_dtypes.bfloat16)
        for expert in range(self.shape[0]):
            blocks = self.blocks.read_rows(expert, 1)[0]
            result[expert] = dequantise(blocks, self.scales.read_rows(expert, 1)[0]).T
        return result


def dequantise(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return float32 [out, in] for blocks [out, in / 32, 16] and scales [out, in / 32]."""
    pairs = np.stack([_VALUES[blocks & 15], _VALUES[blocks >> 4]], axis=-1)
    factors = np.ldexp(np.float32(1), scales.astype(np.int32) - _SCALE_BIAS)
    pairs *= factors[..., None, None]
    return pairs.reshape(blocks.shape[0], -1)


def join_blocks(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor | Mxfp4Tensor]:
    """Replace each pair of blocks and scales with one tensor.

    Raises:
        CheckpointError: one of a pair is missing, or their shapes or dtypes do not match.
    """
    joined: dict[str, StoredTensor | Mxfp4Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BLOCKS):
            stem = name.removesuffix(_BLOCKS)
            scales = tensors.get(stem + _SCALES)
            if scales is None:
                raise CheckpointError(
                    f"{where}: {name} lacks {stem}{_SCALES}: the download is incomplete; fetch the "
                    "checkpoint again"
                )
            if (
                {tensor.dtype, scales.dtype} != {"U8"}
                or len(tensor.shape) != 4
                or tensor.shape != (*scales.shape, _BYTES)
            ):
                raise CheckpointError(
                    f"{where}: {name} is {tensor.dtype} {list(tensor.shape)} and its scales are "
                    f"{scales.dtype} {list(scales.shape)}; MXFP4 has U8 [experts, out, blocks, {_BYTES}] and "
                    "U8 [experts, out, blocks]"
                )
            joined[stem] = Mxfp4Tensor(blocks=tensor, scales=scales)
        elif not (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in tensors):
            joined[name] = tensor
    return joined

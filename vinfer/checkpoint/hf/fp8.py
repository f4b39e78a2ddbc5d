"""Reads checkpoints whose Linear weights are stored as 8-bit floats with scales.

Runs in the build half, on any thread. A weight becomes float32, each value times its scale, and then the
dtype of the build. The result is the stored weights in full precision. The original model also rounds
activations to 8 bits, statically or dynamically; that is not reproduced.

A tensor's dtype says whether it is quantized; the lists of unquantized modules are ignored.

Source: transformers 5.5, `integrations/finegrained_fp8.py`; the compressed-tensors format of llm-compressor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.hf.safetensors_file import StoredTensor
from vinfer.checkpoint.layout import Shape
from vinfer.checkpoint.quantization import QUANTIZATION_KEY, Fp8Scheme
from vinfer.errors import CheckpointError

FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALE_DTYPES = frozenset({"F32", "F16", "BF16"})


def split_scales(
    tensors: Mapping[str, StoredTensor], scheme: Fp8Scheme | None, where: str
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Separate the tensors of the model from the scales of its quantized weights.

    Returns:
        the model's own tensors by name, and the scales by the name of their weight.

    Raises:
        CheckpointError: a quantized weight without a scale, or a scale of the wrong dtype or shape.
    """
    scales: dict[str, StoredTensor] = {}
    companions: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.dtype not in FP8_DTYPES:
            continue
        if scheme is None:
            raise CheckpointError(
                f"{where}: {name} is stored as {tensor.dtype}, but config.json has no {QUANTIZATION_KEY} "
                "that says how it is scaled: use unquantized weights"
            )
        stem = name.removesuffix("weight")
        scale = tensors.get(stem + scheme.scale) if stem != name else None
        if scale is None:
            raise CheckpointError(
                f"{where}: {name} is stored as {tensor.dtype} and lacks its scale {stem}{scheme.scale}: the "
                "download is incomplete; fetch the checkpoint again"
            )
        _check_scale(name, tensor, scale, scheme, where)
        scales[name] = scale
        companions |= {stem + suffix for suffix in (scheme.scale, *scheme.unread)}
    # A scale whose weight is not quantized stays, and the layout check rejects it.
    return {name: tensor for name, tensor in tensors.items() if name not in companions}, scales


def _check_scale(name: str, tensor: StoredTensor, scale: StoredTensor, scheme: Fp8Scheme, where: str) -> None:
    if scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{where}: the scale of {name} is stored as {scale.dtype}; supported: "
            f"{', '.join(sorted(_SCALE_DTYPES))}: use unquantized weights"
        )
    shapes = _scale_shapes(tensor.shape, scheme)
    if scale.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes) or "none"
        raise CheckpointError(
            f"{where}: the scale of {name} has shape {list(scale.shape)}; a weight of shape "
            f"{list(tensor.shape)} needs {wanted}: config and weights belong to different models"
        )


def _scale_shapes(shape: Shape, scheme: Fp8Scheme) -> tuple[Shape, ...]:
    if scheme.block is None:
        return ((), (1,), (*shape[:-1], 1))
    if len(shape) < 2:
        return ()
    rows, columns = scheme.block
    return ((*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns)),)


def dequantise(
    weight: npt.NDArray[Any], scale: npt.NDArray[Any], block: tuple[int, int] | None
) -> npt.NDArray[np.float32]:
    """Return weight times scale in float32, rounded once.

    Args:
        weight: 8-bit floats [..., rows, columns].
        scale: one number; or one per row [..., rows, 1]; or one per block if `block` is given, where the last
            blocks may be smaller: [..., ceil(rows / block[0]), ceil(columns / block[1])].
    """
    values = weight.astype(np.float32)
    factors = scale.astype(np.float32)
    if block is None:
        values *= factors
        return values
    rows, columns = block
    factors = np.repeat(factors, columns, axis=-1)[..., : values.shape[-1]]
    for index in range(factors.shape[-2]):
        values[..., index * rows : (index + 1) * rows, :] *= factors[..., index, None, :]
    return values

"""Reads checkpoints whose Linear weights are stored as 8-bit floats with scales.

Runs in the build half, on any thread. A weight becomes float32, each value times its scale, and then the
dtype of the build. The result is the stored weights in full precision. The original model also rounds
activations to 8 bits, statically or dynamically; that is not reproduced.

A tensor's dtype says whether it is quantized; the lists of unquantized modules are ignored.

Source: transformers 5.5, `integrations/finegrained_fp8.py`; the compressed-tensors format of llm-compressor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.hf.safetensors_file import StoredTensor
from vinfer.checkpoint.layout import Shape
from vinfer.errors import CheckpointError

FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALE_DTYPES = frozenset({"F32", "F16", "BF16"})

_KEY = "quantization_config"
_SERVED = (
    "supported: fp8 (weight_scale_inv) and 8-bit float compressed-tensors: use the original weights or a "
    "GGUF file"
)

# Keys irrelevant to the weights: activations, bookkeeping, and lists of unquantized modules.
_FP8_UNREAD = frozenset({"activation_scheme", "dequantize", "fmt", "modules_to_not_convert", "scale_fmt"})
_COMPRESSED_UNREAD = frozenset({"global_compression_ratio", "ignore", "quantization_status", "version"})
_WEIGHTS_UNREAD = frozenset({"observer", "observer_kwargs", "scale_dtype"})
_WEIGHTS: dict[str, tuple[object, ...]] = {
    "num_bits": (8,),
    "type": ("float",),
    "symmetric": (True,),
    "strategy": ("tensor", "channel"),
    "dynamic": (False,),
}
_FORMATS = ("float-quantized", "naive-quantized")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Scheme:
    """How the scales of a checkpoint are stored.

    Attributes:
        scale: name of a scale, which replaces `weight` in the tensor's name.
        block: rows and columns of a weight that share a scale; None if a whole tensor or a row shares one.
        unread: names, in the same position, of tensors that only activations need.
    """

    scale: str
    block: tuple[int, int] | None
    unread: frozenset[str]


def read_fp8_scheme(keys: ConfigKeys) -> Fp8Scheme | None:
    """Read `quantization_config`; None if it is absent.

    Raises:
        CheckpointError: an unsupported method, key or value.
    """
    if not keys.has(_KEY):
        return None
    stated = keys.values[_KEY]
    if not isinstance(stated, Mapping):
        raise keys.refusal(_KEY, "must be an object")
    inner = ConfigKeys({str(key): value for key, value in stated.items()}, f"{keys.where}: {_KEY}")
    method = inner.string("quant_method", "unstated")
    if method == "fp8":
        return _read_fp8(inner)
    if method == "compressed-tensors":
        return _read_compressed_tensors(inner)
    raise keys.refusal(_KEY, f"quant_method {method!r} is unsupported; {_SERVED}")


def _read_fp8(keys: ConfigKeys) -> Fp8Scheme:
    _refuse_others(keys, {"quant_method", "weight_block_size"} | _FP8_UNREAD)
    block = keys.values.get("weight_block_size")
    unread = frozenset({"activation_scale"})
    if block is None:
        return Fp8Scheme(scale="weight_scale_inv", block=None, unread=unread)
    if not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise keys.refusal("weight_block_size", "must be two positive integers: rows and columns")
    return Fp8Scheme(scale="weight_scale_inv", block=(block[0], block[1]), unread=unread)


def _read_compressed_tensors(keys: ConfigKeys) -> Fp8Scheme:
    empty = ("kv_cache_scheme", "transform_config")
    _refuse_others(
        keys, {"quant_method", "format", "config_groups"} | _COMPRESSED_UNREAD | {*empty, "sparsity_config"}
    )
    for key in empty:
        if keys.values.get(key):
            raise keys.refusal(key, "only an empty value is supported")
    sparsity = keys.values.get("sparsity_config") or {"format": "dense"}
    if not isinstance(sparsity, Mapping) or sparsity.get("format") != "dense":
        raise keys.refusal("sparsity_config", "only the format dense is supported")
    if keys.string("format") not in _FORMATS:
        raise keys.refusal("format", f"supported: {', '.join(_FORMATS)}")
    groups = keys.values.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise keys.refusal("config_groups", "must be an object with at least one group")
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise keys.refusal("config_groups", f"{name} must have an object `weights`")
        _check_weights(
            ConfigKeys({str(key): value for key, value in weights.items()}, f"{keys.where}: {name}: weights")
        )
    return Fp8Scheme(scale="weight_scale", block=None, unread=frozenset({"input_scale"}))


def _check_weights(keys: ConfigKeys) -> None:
    _refuse_others(keys, set(_WEIGHTS) | _WEIGHTS_UNREAD)
    for key, served in _WEIGHTS.items():
        if keys.values.get(key) not in served:
            raise keys.refusal(key, f"supported: {' or '.join(map(repr, served))}; use the original weights")


def _refuse_others(keys: ConfigKeys, known: set[str]) -> None:
    for key in keys.values:
        if keys.has(key) and key not in known:
            raise keys.refusal(key, f"vinfer does not know what this key does to the weights; {_SERVED}")


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
                f"{where}: {name} is stored as {tensor.dtype}, but config.json has no {_KEY} that says how "
                "it is scaled: use unquantized weights"
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

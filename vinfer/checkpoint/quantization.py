"""What config.json says of quantized weights: `quantization_config`, by method.

Runs in the build half, on any thread. Reads no weights: `hf.fp8` and `hf.mxfp4` turn those into plain values.
Which tensors are quantized follows from their dtypes and names; lists of unquantized modules decide nothing.

Source: transformers 5.5, `integrations/finegrained_fp8.py` and `integrations/mxfp4.py`; the
compressed-tensors format of llm-compressor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vinfer.checkpoint.config_keys import ConfigKeys

QUANTIZATION_KEY = "quantization_config"
_SUPPORTED = (
    "supported: fp8 (weight_scale_inv) and 8-bit float compressed-tensors: use the original weights or a "
    "GGUF file"
)
_UNKNOWN = f"vinfer does not know what this key does to the weights; {_SUPPORTED}"

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

# Tensor names show which modules are unquantized; the rest is about loading in transformers.
_MXFP4_UNREAD = frozenset({"dequantize", "modules_to_not_convert", "quant_method"})


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
    if not keys.has(QUANTIZATION_KEY):
        return None
    stated = keys.values[QUANTIZATION_KEY]
    if not isinstance(stated, Mapping):
        raise keys.refusal(QUANTIZATION_KEY, "must be an object")
    inner = ConfigKeys(
        {str(key): value for key, value in stated.items()}, f"{keys.where}: {QUANTIZATION_KEY}"
    )
    method = inner.string("quant_method", "unstated")
    if method == "fp8":
        return _read_fp8(inner)
    if method == "compressed-tensors":
        return _read_compressed_tensors(inner)
    raise keys.refusal(QUANTIZATION_KEY, f"quant_method {method!r} is unsupported; {_SUPPORTED}")


def _read_fp8(keys: ConfigKeys) -> Fp8Scheme:
    block = keys.values.get("weight_block_size")
    keys.refuse_unread(_UNKNOWN, harmless=_FP8_UNREAD)
    unread = frozenset({"activation_scale"})
    if block is None:
        return Fp8Scheme(scale="weight_scale_inv", block=None, unread=unread)
    if not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise keys.refusal("weight_block_size", "must be two positive integers: rows and columns")
    return Fp8Scheme(scale="weight_scale_inv", block=(block[0], block[1]), unread=unread)


def _read_compressed_tensors(keys: ConfigKeys) -> Fp8Scheme:
    for key in ("kv_cache_scheme", "transform_config"):
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
    keys.refuse_unread(_UNKNOWN, harmless=_COMPRESSED_UNREAD)
    return Fp8Scheme(scale="weight_scale", block=None, unread=frozenset({"input_scale"}))


def _check_weights(keys: ConfigKeys) -> None:
    for key, served in _WEIGHTS.items():
        if keys.values.get(key) not in served:
            raise keys.refusal(key, f"supported: {' or '.join(map(repr, served))}; use the original weights")
    keys.refuse_unread(_UNKNOWN, harmless=_WEIGHTS_UNREAD)


def is_mxfp4(keys: ConfigKeys) -> bool:
    """Return whether `quantization_config` says MXFP4.

    Raises:
        CheckpointError: it does, and has an unknown key.
    """
    stated = keys.values.get(QUANTIZATION_KEY)
    if not isinstance(stated, Mapping) or stated.get("quant_method") != "mxfp4":
        return False
    for key in stated:
        if key not in _MXFP4_UNREAD:
            raise keys.refusal(
                QUANTIZATION_KEY, f"vinfer does not know how its key {key} affects the weights"
            )
    return True

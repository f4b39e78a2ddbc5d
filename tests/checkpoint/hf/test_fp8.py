"""8-bit float weights: every value is multiplied by its scale; any other layout is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

Write = Callable[..., Path]
Tiny = Callable[..., Any]
Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [16, 12],
    "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
}
COMPRESSED: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "type": "float"},
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": None,
                "num_bits": 8,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "channel",
                "symmetric": True,
                "type": "float",
            },
        }
    },
    "format": "float-quantized",
    "global_compression_ratio": 1.5,
    "ignore": ["lm_head", "re:.*norm"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
UP = "model.layers.1.mlp.up_proj"  # [48, 32]: 3 rows of blocks, each with two whole blocks and 8 columns
Q = "model.layers.0.self_attn.q_proj"


def _open(directory: Path) -> Checkpoint:
    return open_checkpoint(resolve_source(str(directory)))


def _save(write: Write, tensors: Tensors, quantization: dict[str, Any] | None) -> Path:
    directory = write() if quantization is None else write(quantization_config=quantization)
    save_file(tensors, directory / "model.safetensors")
    return directory


def _blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _quantise(
    tensors: Tensors, suffix: str, shape_of: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> Tensors:
    """Store every Linear of the layers as 8-bit floats, with random scales that are not powers of two."""
    generator = np.random.default_rng(7)
    stored: Tensors = {}
    for name, tensor in tensors.items():
        if "_proj." not in name:
            stored[name] = tensor
            continue
        stored[name] = (tensor * 20).astype(ml_dtypes.float8_e4m3fn)
        scale = generator.uniform(0.01, 0.2, shape_of(tensor.shape)).astype(np.float32)
        stored[name.replace("weight", suffix)] = scale
    return stored


@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_blocks_are_multiplied_by_their_scales(
    hf_directory: Write, tiny: Tiny, dtype: Any, scale_dtype: Any
) -> None:
    block = (16, 12)
    tensors = tiny("llama").tensors
    stored = _quantise(tensors, "weight_scale_inv", lambda shape: _blocks(shape, block))
    stored = {
        name: tensor.astype(dtype)
        if tensor.dtype == ml_dtypes.float8_e4m3fn
        else tensor.astype(scale_dtype)
        if name.endswith("scale_inv")
        else tensor
        for name, tensor in stored.items()
    }
    checkpoint = _open(_save(hf_directory, stored, FP8))
    assert sorted(checkpoint.tensor_names()) == sorted(tensors)
    assert num_parameters(checkpoint) == sum(tensor.size for tensor in tensors.values())
    for name, tensor in tensors.items():
        values = checkpoint.read(name)
        assert checkpoint.tensor_shape(name) == tensor.shape
        if "_proj." not in name:
            np.testing.assert_array_equal(values, tensor)
            continue
        assert values.dtype == np.float32
        weight, scale = stored[name], stored[name.replace("weight", "weight_scale_inv")]
        for row, column in np.ndindex(*tensor.shape):
            expected = np.float32(float(weight[row, column]) * float(scale[row // 16, column // 12]))
            assert values[row, column] == expected
    assert np.unique(checkpoint.read(f"{UP}.weight")).size > 100


def test_one_scale_for_a_whole_matrix(hf_directory: Write, tiny: Tiny) -> None:
    """Test transformers' form without blocks, with static activation scales next to it."""
    stored = _quantise(tiny("llama").tensors, "weight_scale_inv", lambda _: ())
    stored[f"{UP}.activation_scale"] = np.array(3.0, ml_dtypes.bfloat16)
    config = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    checkpoint = _open(_save(hf_directory, stored, config))
    expected = stored[f"{UP}.weight"].astype(np.float64) * float(stored[f"{UP}.weight_scale_inv"])
    np.testing.assert_array_equal(checkpoint.read(f"{UP}.weight"), expected.astype(np.float32))


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors(hf_directory: Write, tiny: Tiny, strategy: str) -> None:
    stored = _quantise(
        tiny("llama").tensors,
        "weight_scale",
        lambda shape: (shape[0], 1) if strategy == "channel" else (1,),
    )
    stored[f"{UP}.input_scale"] = np.ones(1, np.float32)
    config = json.loads(json.dumps(COMPRESSED))
    config["config_groups"]["group_0"]["weights"]["strategy"] = strategy
    checkpoint = _open(_save(hf_directory, stored, config))
    scale = stored[f"{UP}.weight_scale"].reshape(-1)
    for row, values in enumerate(checkpoint.read(f"{UP}.weight")):
        expected = stored[f"{UP}.weight"][row].astype(np.float64) * float(scale[row % scale.size])
        np.testing.assert_array_equal(values, expected.astype(np.float32))


def _with(name: str, value: Array) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{Q}.weight_scale_inv"),
            f"{Q}.weight is stored as F8_E4M3 and lacks its scale {Q}",
        ),
        (
            _with(f"{UP}.weight_scale_inv", np.ones((3, 2), np.float32)),
            r"\[3, 2\].*\[48, 32\] needs \[3, 3\]",
        ),
        (
            _with(f"{UP}.weight_scale_inv", np.ones((3, 3), np.int8)),
            "scale of .*up_proj.weight is stored as I8",
        ),
        # A scale next to a full-precision weight is ambiguous.
        (_with(f"{UP}.weight", np.ones((48, 32), np.float32)), f"does not use, first {UP}.weight_scale_inv"),
        (_with(f"{UP}.k_scale", np.ones(1, np.float32)), "does not use, first .*k_scale"),
        (
            _with("model.norm.weight", np.ones(32, ml_dtypes.float8_e4m3fn)),
            "model.norm.weight is stored as F8_E4M3 and lacks its scale model.norm.weight_scale_inv",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    hf_directory: Write, tiny: Tiny, change: Callable[[Tensors], object], message: str
) -> None:
    stored = _quantise(tiny("llama").tensors, "weight_scale_inv", lambda shape: _blocks(shape, (16, 12)))
    change(stored)
    with pytest.raises(CheckpointError, match=message):
        _open(_save(hf_directory, stored, FP8))


def test_8_bit_floats_that_nothing_explains_are_refused(hf_directory: Write, tiny: Tiny) -> None:
    stored = _quantise(tiny("llama").tensors, "weight_scale_inv", lambda shape: _blocks(shape, (16, 12)))
    with pytest.raises(
        CheckpointError, match=r"stored as F8_E4M3, but config\.json has no quantization_config"
    ):
        _open(_save(hf_directory, stored, None))


def _compressed(**changes: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(COMPRESSED))
    config["config_groups"]["group_0"]["weights"] |= changes
    return dict(config)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("fp8", "quantization_config = 'fp8': must be an object"),
        ({}, "quant_method 'unstated' is unsupported"),
        ({"quant_method": "awq", "bits": 4}, "quant_method 'awq' is unsupported"),
        (FP8 | {"quant_method": 8}, "quant_method = 8: must be a string"),
        (FP8 | {"weight_block_size": [128]}, r"weight_block_size = \[128\]: must be two positive"),
        (FP8 | {"weight_block_size": [128, 0]}, "must be two positive"),
        (FP8 | {"ignored_layers": ["lm_head"]}, "ignored_layers = .*does not know"),
        (COMPRESSED | {"format": "pack-quantized"}, "format = 'pack-quantized': supported: float-quantized"),
        (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme = .*only an empty value"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "only the format dense"),
        (COMPRESSED | {"config_groups": {}}, "config_groups = .*at least one group"),
        (COMPRESSED | {"config_groups": {"group_0": ["Linear"]}}, "group_0 must have an object `weights`"),
        (_compressed(num_bits=4), "group_0: weights: num_bits = 4: supported: 8"),
        (_compressed(type="int"), "type = 'int': supported: 'float'"),
        (_compressed(strategy="group"), "strategy = 'group': supported: 'tensor' or 'channel'"),
        (_compressed(symmetric=False), "symmetric = False"),
        (_compressed(group_size=128), "group_size = 128: vinfer does not know"),
    ],
)
def test_other_quantisation_is_refused_by_name(
    hf_directory: Write, quantization: object, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        _open(hf_directory(quantization_config=quantization))

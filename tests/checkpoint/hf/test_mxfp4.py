"""MXFP4: the same values as transformers, bit for bit, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

import torch
from safetensors.numpy import load_file, save_file
from tiny.checkpoints import checkpoint
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

Write = Callable[..., Path]
DOWN = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Write, dict[str, Any]]:
    """Write the tiny gpt-oss with random packed experts; `edit` changes the tensors first."""
    source = checkpoint("gpt-oss")
    tensors: dict[str, Any] = load_file(source / "model.safetensors")
    draw = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, num_inputs, num_outputs = tensors.pop(name).shape
        blocks = (experts, num_outputs, num_inputs // 32, 16)
        tensors[f"{name}_blocks"] = draw.integers(0, 256, blocks, dtype=np.uint8)
        tensors[f"{name}_scales"] = draw.integers(100, 140, blocks[:-1], dtype=np.uint8)

    def write(edit: Callable[[dict[str, Any]], object] = len, **quantization: Any) -> Path:
        directory = shutil.copytree(source, tmp_path / "packed")
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["lm_head"],
        } | quantization
        (directory / "config.json").write_text(json.dumps(config))
        changed = dict(tensors)
        edit(changed)
        save_file(changed, directory / "model.safetensors")
        return directory

    return write, tensors


def test_values_are_those_of_transformers(packed: tuple[Write, dict[str, Any]]) -> None:
    write, tensors = packed
    opened = open_checkpoint(resolve_source(str(write())))
    names = [name for name in opened.tensor_names() if name.endswith(("gate_up_proj", "down_proj"))]
    assert len(names) == 6
    for name in names:
        theirs = convert_moe_packed_tensors(
            torch.from_numpy(tensors[f"{name}_blocks"]), torch.from_numpy(tensors[f"{name}_scales"])
        )
        ours = opened.read(name)
        assert opened.tensor_shape(name) == ours.shape == tuple(theirs.shape)
        assert ours.dtype.name == "bfloat16"
        np.testing.assert_array_equal(ours.astype(np.float32), theirs.float().numpy())


def test_other_tensors_stay_as_they_are(packed: tuple[Write, dict[str, Any]]) -> None:
    write, tensors = packed
    opened = open_checkpoint(resolve_source(str(write())))
    for name in ("model.norm.weight", f"{DOWN}_bias"):
        np.testing.assert_array_equal(opened.read(name), tensors[name])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tensors: tensors.pop(f"{DOWN}_scales"), "down_proj_blocks lacks .*down_proj_scales"),
        (lambda tensors: tensors.pop(f"{DOWN}_blocks"), "down_proj_scales is stored as U8"),
        (
            lambda tensors: tensors.update({f"{DOWN}_scales": tensors[f"{DOWN}_scales"][:, :-1].copy()}),
            "MXFP4 has U8",
        ),
        (lambda tensors: tensors.update({f"{DOWN}_scales": np.zeros(3, np.float32)}), "MXFP4 has U8"),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.zeros(128, np.uint8)}),
            "model.norm.weight is stored as U8",
        ),
    ],
)
def test_refusals(
    packed: tuple[Write, dict[str, Any]], edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(resolve_source(str(packed[0](edit))))


def test_a_key_of_unknown_meaning_is_refused(packed: tuple[Write, dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="its key group_size affects"):
        open_checkpoint(resolve_source(str(packed[0](group_size=64))))

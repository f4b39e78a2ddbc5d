"""The towers of Qwen2-VL and Qwen2.5-VL: images of several sizes in one dispatch, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="features are compared with those of transformers")

import jax
import jax.numpy as jnp
import torch
from tiny.checkpoints import checkpoint

from vinfer.bundle.programs import ProgramShape
from vinfer.checkpoint.hf.directory import open_hf_directory
from vinfer.compiler.vision import tower as vision_tower
from vinfer.compiler.vision.encoders import make_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPE = ProgramShape(kind="encode_images", rows=4, image=(3, 96, 96))
GRIDS = ((3, 5), (8, 8), (1, 1))
"""Rows and columns of features; the dispatch's fourth row is padding."""


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2-5-vl"])
@pytest.mark.parametrize("query_block", [vision_tower.QUERY_BLOCK, 100])
def test_features_are_those_of_transformers(
    query_block: int,
    name: str,
    reference_of: Callable[[str], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vision_tower, "QUERY_BLOCK", query_block)
    opened = open_hf_directory(checkpoint(name))
    assert opened.vision is not None
    encoder = make_encoder(opened.vision.encoder, dtype="float32", tp=1)
    weights = [jnp.asarray(next(iter(weight.pieces(opened.read)))) for weight in encoder.weights]
    pixel_spec, grid_spec = encoder.inputs(SHAPE)
    # Values in padding must not affect the result.
    pixels = np.full(pixel_spec.shape, 7, np.float32)
    grids = np.zeros(grid_spec.shape, np.int32)
    generator = np.random.default_rng(1)
    for place, (rows, columns) in enumerate(GRIDS):
        num_patches = 4 * rows * columns
        pixels[place, :num_patches] = generator.normal(size=(num_patches, pixel_spec.shape[2]))
        grids[place] = rows, columns
    found = np.asarray(jax.jit(encoder.encode)(weights, pixels, grids))
    assert found.shape == (4, 64, 128)
    assert np.isfinite(found).all()

    tower = reference_of(name).model.visual
    real = [pixels[place, : 4 * rows * columns] for place, (rows, columns) in enumerate(GRIDS)]
    grid_thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in GRIDS])
    with torch.no_grad():
        expected = tower(torch.from_numpy(np.concatenate(real)), grid_thw=grid_thw).pooler_output.numpy()
    ours = np.concatenate([found[place, : rows * columns] for place, (rows, columns) in enumerate(GRIDS)])
    assert np.abs(ours - expected).max() < 5e-6 * np.abs(expected).max()

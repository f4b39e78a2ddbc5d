"""Arithmetic of the vision towers at sizes that no tiny checkpoint reaches."""

from __future__ import annotations

import numpy as np
import pytest

from vinfer.checkpoint.vision import TowerFacts
from vinfer.compiler.vision import tower as vision_tower
from vinfer.compiler.vision.tower import VisionWeights, tower_states

FACTS = TowerFacts(
    is_clip=False,
    num_layers=2,
    num_heads=4,
    hidden_size=32,
    inner_size=48,
    num_channels=3,
    image_size=32,
    patch_size=4,
    norm_epsilon=1e-6,
    activation="gelu_pytorch_tanh",
)


def last_state() -> np.ndarray:
    generator = np.random.default_rng(5)
    named = {
        weight.name: generator.normal(size=weight.shape, scale=0.3).astype(np.float32)
        for weight in VisionWeights("float32", tp=1).tower(FACTS, num_layers=2)
    }
    pixels = generator.normal(size=(2, *FACTS.image_shape)).astype(np.float32)
    *_, last = tower_states(named, FACTS, pixels, num_layers=2)
    return np.asarray(last)


@pytest.mark.parametrize("block", [8, 16, 24, 32])
def test_many_patches_look_at_all_others_block_by_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3 has 4096 patches, whose scores would take a gigabyte."""
    whole = last_state()
    monkeypatch.setattr(vision_tower, "QUERY_BLOCK", block)
    np.testing.assert_allclose(last_state(), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_what_tp_does_not_divide_is_on_every_device() -> None:
    for tp, is_split in ((2, True), (3, False)):
        weights = VisionWeights("bfloat16", tp).linear("fc1", 32, 4304, splits=1)
        assert [weight.axes for weight in weights] == (
            [(None, "tp"), ("tp",)] if is_split else [(None, None), (None,)]
        )

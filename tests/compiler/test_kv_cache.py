"""Pages are copied within their group, all layers of it at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from vinfer.compiler.kv_cache import LayerCache, SlotCache, copy_pages
from vinfer.compiler.paged_attention import NO_PAGE

LAYERS = [LayerCache(group, None, num_kv_heads=1, block_len=8) for group in (0, 1, 0)]
NUM_PAGES = (5, 3)
"""By group."""


def pools() -> list[npt.NDArray[np.float32]]:
    """Return k and v of every layer, each of another width, and no two pages alike."""
    draw = np.random.default_rng(0)
    return [
        draw.normal(size=(NUM_PAGES[layer.group], 4, width)).astype(np.float32)
        for layer in LAYERS
        for width in (6, 10)
    ]


def copied(sources: tuple[int, ...], targets: tuple[int, ...]) -> list[npt.NDArray[Any]]:
    run = jax.jit(lambda kv, sources, targets: copy_pages(kv, sources, targets, LAYERS))
    one_shard = [jnp.array([places], jnp.int32) for places in (sources, targets)]
    return [np.asarray(pool) for pool in run(pools(), *one_shard)]


def test_each_group_copies_its_own_page() -> None:
    sources, targets = (4, 0), (1, 2)
    for place, (before, after) in enumerate(zip(pools(), copied(sources, targets), strict=True)):
        group = LAYERS[place // 2].group
        expected = before.copy()
        expected[targets[group]] = before[sources[group]]
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("sources", [(NO_PAGE, NO_PAGE), (3, 2)])
def test_no_target_copies_nothing(sources: tuple[int, ...]) -> None:
    for before, after in zip(pools(), copied(sources, (NO_PAGE, NO_PAGE)), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_page_can_be_copied_in_one_group_alone() -> None:
    for place, (before, after) in enumerate(zip(pools(), copied((4, 0), (1, NO_PAGE)), strict=True)):
        if LAYERS[place // 2].group == 0:
            np.testing.assert_array_equal(after[1], before[4])
        else:
            np.testing.assert_array_equal(after, before)


def test_a_page_that_is_its_own_copy_stays() -> None:
    for before, after in zip(pools(), copied((2, 1), (2, 1)), strict=True):
        np.testing.assert_array_equal(after, before)


def test_what_is_copied_may_be_nan() -> None:
    kv = [pool * np.nan for pool in pools()]
    places = jnp.array([[0, 0]], jnp.int32)
    after = copy_pages([jnp.asarray(pool) for pool in kv], places, places + 1, LAYERS)
    assert all(np.isnan(pool).all() for pool in after)


def test_layers_of_other_kinds_lie_between() -> None:
    """A latent is one array with pages; what is kept per slot has none, and stays."""
    draw = np.random.default_rng(1)
    layers = [LAYERS[0], SlotCache(2), LayerCache(1, None, num_kv_heads=1, block_len=8, latent_value_dim=4)]
    shapes = [(5, 4, 6), (5, 4, 6), (2, 3), (2, 3, 4), (3, 4, 6)]
    arrays = [draw.normal(size=shape).astype(np.float32) for shape in shapes]
    places = (jnp.array([pages], jnp.int32) for pages in ((4, 0), (1, 2)))
    k, v, *of_slots, latent = copy_pages([jnp.asarray(array) for array in arrays], *places, layers)
    for before, after in zip(arrays[:2], (k, v), strict=True):
        np.testing.assert_array_equal(after, before[[0, 4, 2, 3, 4]])
    for before, after in zip(arrays[2:4], of_slots, strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(latent, arrays[4][[0, 1, 0]])

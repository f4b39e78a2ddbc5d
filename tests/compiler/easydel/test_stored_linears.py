"""On one CPU device linear layers have weights as checkpoints store them, and those of one input are one.

That the answers are right is for the parity tests, whose bundles have both kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vinfer.bundle.directory import read_manifest
from vinfer.compiler.easydel.stored_linears import Product


@pytest.mark.bundles("llama", "llama-tp2")
@pytest.mark.parametrize(("name", "is_stored"), [("llama", True), ("llama-tp2", False)])
def test_one_device_has_weights_as_stored(
    bundle_of: Callable[[str], Path], name: str, is_stored: bool
) -> None:
    shapes = {weight.name: weight.shape for weight in read_manifest(bundle_of(name)).weights}
    layer = "model.layers.0"
    kernels = {
        name.removeprefix(f"{layer}.").removesuffix(".kernel")
        for name in shapes
        if name.startswith(layer) and name.endswith("proj.kernel")
    }
    apart = {"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}
    first = {"self_attn.q_proj", "mlp.gate_proj"}
    assert kernels == {"self_attn.o_proj", "mlp.down_proj"} | first | (set() if is_stored else apart)
    hidden = shapes["model.embed_tokens.embedding"][1]
    down, gate = shapes[f"{layer}.mlp.down_proj.kernel"], shapes[f"{layer}.mlp.gate_proj.kernel"]
    if is_stored:
        assert down[0] == hidden
        assert gate == (2 * down[1], hidden)
    else:
        assert down[1] == hidden
        assert gate == (hidden, down[0])


def test_a_product_is_computed_once_and_forgotten() -> None:
    inputs, weights = jnp.ones((2, 3)), jnp.arange(12.0).reshape(4, 3)
    product = Product(2)
    first = product.take(inputs, weights)
    np.testing.assert_array_equal(first, inputs @ weights.T)
    assert product.take(inputs, None) is first
    with pytest.raises(AssertionError, match="several inputs"):
        product.take(inputs, None)


def test_joined_projections_have_one_input() -> None:
    product = Product(3)
    product.take(jnp.ones((2, 3)), jnp.ones((4, 3)))
    with pytest.raises(AssertionError, match="several inputs"):
        product.take(jnp.ones((2, 3)), None)


def test_each_joined_projection_is_called() -> None:
    product = Product(2)
    product.take(jnp.ones((2, 3)), jnp.ones((4, 3)))
    with pytest.raises(AssertionError, match="was not called"):
        product.take(jnp.ones((2, 3)), jnp.ones((4, 3)))

"""Projections of one input are one product on one CPU device, and stay apart on a mesh.

That the answers are right is for the parity tests, whose bundles have both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vinfer.bundle.directory import read_manifest
from vinfer.compiler.easydel.joined import Product


@pytest.mark.bundles("llama", "llama-tp2")
@pytest.mark.parametrize(("name", "are_joined"), [("llama", True), ("llama-tp2", False)])
def test_one_device_has_joined_weights(bundle_of: Callable[[str], Path], name: str, are_joined: bool) -> None:
    shapes = {weight.name: weight.shape for weight in read_manifest(bundle_of(name)).weights}
    layer = "model.layers.0"
    kernels = {
        name.removeprefix(f"{layer}.").removesuffix(".kernel")
        for name in shapes
        if name.startswith(layer) and name.endswith("proj.kernel")
    }
    apart = {"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}
    first = {"self_attn.q_proj", "mlp.gate_proj"}
    assert kernels == {"self_attn.o_proj", "mlp.down_proj"} | first | (set() if are_joined else apart)
    hidden, inner = shapes[f"{layer}.mlp.down_proj.kernel"][::-1]
    assert shapes[f"{layer}.mlp.gate_proj.kernel"] == (hidden, inner * (2 if are_joined else 1))


def test_a_product_is_computed_once_and_forgotten() -> None:
    inputs, kernel = jnp.ones((2, 3)), jnp.arange(12.0).reshape(3, 4)
    product = Product(2)
    first = product.take(inputs, kernel)
    np.testing.assert_array_equal(first, inputs @ kernel)
    assert product.take(inputs, None) is first
    with pytest.raises(AssertionError, match="several inputs"):
        product.take(inputs, None)


def test_joined_projections_have_one_input() -> None:
    product = Product(3)
    product.take(jnp.ones((2, 3)), jnp.ones((3, 4)))
    with pytest.raises(AssertionError, match="several inputs"):
        product.take(jnp.ones((2, 3)), None)


def test_each_joined_projection_is_called() -> None:
    product = Product(2)
    product.take(jnp.ones((2, 3)), jnp.ones((3, 4)))
    with pytest.raises(AssertionError, match="was not called"):
        product.take(jnp.ones((2, 3)), jnp.ones((3, 4)))

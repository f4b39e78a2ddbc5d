"""Joins projections that read the same input into one matrix product.

On a CPU each product ends with a wait for all threads, which is a good part of a decode step. The weights of
the joined projections stand side by side in the weight file: to join them in a program would copy them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Attributes of an attention or MLP that EasyDeL calls in this order with one input."""


def join_projections(blocks: Iterable[tuple[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Join the projections of attentions and MLPs, where these have the usual ones.

    Changes classes and static attributes, because these survive `split_module` and `merge_module`.

    Args:
        blocks: path and module of each.

    Returns:
        For each first projection, which has the weights [in, all out] of all of them, the paths of all.
    """
    joined = {}
    for path, block in blocks:
        for names in JOINED:
            linears = [getattr(block, name, None) for name in names]
            if all(type(linear) is _linear_class() for linear in linears):
                _join(linears)
                paths = tuple(f"{path}.{name}" for name in names)
                joined[paths[0]] = paths
    return joined


def _join(linears: Sequence[Any]) -> None:
    kernels = [linear.kernel.value for linear in linears]
    widths = [kernel.shape[1] for kernel in kernels]
    product = Product(len(linears))
    columns_of = itertools.pairwise(itertools.accumulate(widths, initial=0))
    for linear, columns in zip(linears, columns_of, strict=True):
        linear.__class__ = _joined_linear()
        linear.product = product
        linear.columns = columns
        if linear is not linears[0]:
            linear.kernel = None
    linears[0].kernel.value = jax.ShapeDtypeStruct((kernels[0].shape[0], sum(widths)), kernels[0].dtype)


class Product:
    """The product of one input with all joined weights, between the first and the last that take of it."""

    def __init__(self, num_takers: int) -> None:
        self._num_takers = num_takers
        self._num_left = 0
        self._inputs: Any = None
        self._product: Any = None

    def take(self, inputs: Any, kernel: Any) -> Any:
        """Return the product.

        Args:
            inputs: the same array, by identity, for all.
            kernel: all weights, from the first that takes.
        """
        if kernel is not None:
            assert not self._num_left, "a joined projection was not called"
            self._inputs, self._product = inputs, jnp.einsum("...i,ij->...j", inputs, kernel)
            self._num_left = self._num_takers
        assert inputs is self._inputs, "joined projections have several inputs"
        product = self._product
        self._num_left -= 1
        if not self._num_left:
            # Nothing of one trace may reach the next one.
            self._inputs = self._product = None
        return product


@functools.cache
def _linear_class() -> type[Any]:
    from easydel.layers import ColumnParallelLinear

    return ColumnParallelLinear  # type: ignore[no-any-return, unused-ignore]


@functools.cache
def _joined_linear() -> type[Any]:
    class JoinedLinear(_linear_class()):  # type: ignore[misc]
        """One of several linear layers; the first one holds the weights of all."""

        def __call__(self, inputs: Any, w: Any = None) -> Any:
            assert w is None
            start, end = self.columns
            output = self.product.take(inputs, None if self.kernel is None else self.kernel.value)
            output = output[..., start:end]
            return output if self.bias is None else output + self.bias.value

        def craft_sharding(self, **_: Any) -> dict[str, Any]:
            """There is one device."""
            return {}

    return JoinedLinear

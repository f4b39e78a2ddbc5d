"""Linear layers on one CPU device: weights as checkpoints store them, one product for each input.

Weights are [out, in], for `cpu_kernel`. Each product ends with a wait for all threads, which is a good part
of a decode step. So those of one input are one: their weights stand one after the other in the weight file,
since to join them in a program would copy them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vinfer.cpu_kernel.calls import multiply

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Attributes of an attention or MLP that EasyDeL calls in this order with one input."""


def keep_as_stored(module: Any, blocks: Iterable[str], dtype: jnp.dtype) -> dict[str, dict[str, int]]:
    """Replace every linear layer of a causal LM whose weights have the model's dtype.

    Changes classes and static attributes, because these survive `split_module` and `merge_module`.

    Args:
        blocks: paths of all attentions and MLPs.

    Returns:
        For each linear layer that has weights now, the number of outputs of each layer whose weights it has,
        by path.
    """
    from flax import nnx

    linears = {
        ".".join(map(str, path)): part
        for path, part in nnx.iter_graph(module)
        # Kernels are for one dtype; a layer of another one is XLA's.
        if type(part) in _linear_classes() and part.kernel.value.dtype == dtype
    }
    possible = (tuple(f"{path}.{name}" for name in names) for path in blocks for names in JOINED)
    groups = [paths for paths in possible if all(path in linears for path in paths)]
    joined = {path for paths in groups for path in paths}
    groups += [(path,) for path in linears if path not in joined]
    stored = {}
    for paths in groups:
        widths = _replace([linears[path] for path in paths])
        stored[paths[0]] = dict(zip(paths, widths, strict=True))
    return stored


def _replace(linears: Sequence[Any]) -> list[int]:
    """Give the weights of linear layers that read one input to the first of them; return their widths."""
    kernels = [linear.kernel.value for linear in linears]
    widths = [kernel.shape[1] for kernel in kernels]
    product = Product(len(linears))
    columns_of = itertools.pairwise(itertools.accumulate(widths, initial=0))
    for linear, columns in zip(linears, columns_of, strict=True):
        linear.__class__ = _stored_linear()
        linear.product = product
        linear.columns = columns
        if linear is not linears[0]:
            linear.kernel = None
    linears[0].kernel.value = jax.ShapeDtypeStruct((sum(widths), kernels[0].shape[0]), kernels[0].dtype)
    return widths


class Product:
    """The product of one input with the weights of all its linear layers, from the first call to the last."""

    def __init__(self, num_takers: int) -> None:
        self._num_takers = num_takers
        self._num_left = 0
        self._inputs: Any = None
        self._product: Any = None

    def take(self, inputs: Any, weights: Any) -> Any:
        """Return the product.

        Args:
            inputs: the same array, by identity, for all.
            weights: [all out, in], from the first that takes.
        """
        if weights is not None:
            assert not self._num_left, "a joined projection was not called"
            self._inputs, self._product = inputs, multiply(inputs, weights)
            self._num_left = self._num_takers
        assert inputs is self._inputs, "joined projections have several inputs"
        product = self._product
        self._num_left -= 1
        if not self._num_left:
            # Nothing of one trace may reach the next one.
            self._inputs = self._product = None
        return product


@functools.cache
def _linear_classes() -> tuple[type[Any], ...]:
    from easydel.layers import ColumnParallelLinear, RowParallelLinear

    return ColumnParallelLinear, RowParallelLinear


@functools.cache
def _stored_linear() -> type[Any]:
    from easydel.layers.linears import ParallelLinear

    class StoredLinear(ParallelLinear):  # type: ignore[misc]
        """A linear layer that may hold the weights of others too, or leave its own to another."""

        def __call__(self, inputs: Any, w: Any = None) -> Any:
            """Apply the layer; `w` is a tied head's weights, [in, out]."""
            if w is not None:
                weights = w.T
            else:
                weights = None if self.kernel is None else self.kernel.value
            start, end = self.columns
            output = self._scale_operator(self.product.take(inputs, weights)[..., start:end])
            return output if self.bias is None else output + self.bias.value

        def craft_sharding(self, **_: Any) -> dict[str, Any]:
            """There is one device."""
            return {}

    return StoredLinear

"""An EasyDeL model as pure functions of its weights.

Takes a normalized checkpoint config, builds the EasyDeL module without its weights, and offers what the
programs need: the list of weights with their PartitionSpecs and sources, a forward pass over our KV cache,
and the LM head. Code for every family is here; `corrections` and `mixtures` correct single families.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vinfer.bundle.manifest import MESH_AXES, PartitionAxes, axis_names, kv_groups
from vinfer.checkpoint.family import ModelFacts
from vinfer.compiler.easydel.families import easydel_classes, easydel_family
from vinfer.compiler.easydel.paged_attention import attend_over_pages
from vinfer.compiler.easydel.stored_linears import keep_as_stored
from vinfer.compiler.kv_cache import KVCache, LayerCache, Rows, copy_pages
from vinfer.compiler.vision.features import ImageFeatures
from vinfer.compiler.weights import Weight
from vinfer.errors import BuildError


def import_easydel() -> None:
    """Import EasyDeL without torch and without changing this process's settings.

    - `easydel.modules` imports all ~70 families. Some of them (glm4v_moe) fail without torch, because they
      patch torch classes of transformers. An empty package in its place keeps each family importable on
      its own.
    - Importing initializes jax.distributed unless ENABLE_DISTRIBUTED_INIT=0.
    - ejkernel points JAX's compilation cache at COMPILE_FUNC_DIR; the build compiles nothing worth keeping.
    """
    if "easydel" in sys.modules:
        return
    os.environ["ENABLE_DISTRIBUTED_INIT"] = "0"
    spec = importlib.util.find_spec("easydel")
    if spec is None or spec.origin is None:
        raise BuildError(
            "this model has no bundle yet and building one needs EasyDeL: pip install 'vinfer[build]', "
            "or run vinfer precompile elsewhere and serve the bundle directory"
        )
    cache_dir = jax.config.values["jax_compilation_cache_dir"]
    package = types.ModuleType("easydel.modules")
    package.__path__ = [str(Path(spec.origin).parent / "modules")]
    importlib.import_module("easydel")
    sys.modules["easydel.modules"] = package
    importlib.import_module("easydel.modules._base")
    jax.config.update("jax_compilation_cache_dir", cache_dir)


class EasyDeLModel:
    """A causal language model as pure functions of its weights.

    Args:
        model_type: key of `checkpoint.families.FAMILIES`.
        config: normalized keys for the family's EasyDeL config class.
        facts: sizes and windows of the decoder.
        dtype: dtype of weights, activations and KV cache: float32, bfloat16 or float16.
        mesh: size of every axis of MESH_AXES.
        max_model_len: rows of the RoPE table; the longest sequence.
        attention_block_len: see `compiler.paged_attention.attend`.
        keeps_weights_in_place: see `attend_over_pages`; for accelerators.
        kernel: see `LayerCache`.
        keeps_linears_as_stored: see `easydel.stored_linears`; for one CPU device only.
    """

    def __init__(
        self,
        *,
        model_type: str,
        config: Mapping[str, Any],
        facts: ModelFacts,
        dtype: str,
        mesh: Mapping[str, int],
        max_model_len: int,
        attention_block_len: int,
        keeps_weights_in_place: bool,
        kernel: Literal["cpu", "gpu"] | None = None,
        keeps_linears_as_stored: bool = False,
    ) -> None:
        import_easydel()
        from flax import nnx

        self._family = easydel_family(model_type)
        self.facts = facts
        config_class, self._model_class = easydel_classes(model_type)
        easydel_config = config_class(
            **{**config, "tie_word_embeddings": facts.is_tied, "rope_scaling": None}
        )
        self.dtype = jnp.dtype(dtype)
        easydel_config.add_basic_configurations(
            sharding_axis_dims=tuple(mesh[axis] for axis in MESH_AXES),
            attn_mechanism="vanilla",
            attn_dtype=self.dtype,
            attn_softmax_dtype=jnp.float32,
            kvdtype=self.dtype,
            freq_max_position_embeddings=max_model_len,
            mask_max_position_embeddings=max_model_len,
        )
        self.vocab_size = facts.vocab_size
        self.hidden_size = facts.hidden_size
        self.rope_names = tuple(self._family.ropes)
        self.max_model_len = max_model_len
        self.mesh: Mesh = easydel_config.mesh
        self.axis_sizes = dict(mesh)
        groups = kv_groups(facts.windows)
        self._layers = [
            LayerCache(
                group=groups.index(window),
                window=window,
                num_kv_heads=facts.num_kv_heads,
                block_len=attention_block_len,
                mesh=self.mesh if self.mesh.size > 1 else None,
                kernel=kernel,
            )
            for window in facts.windows
        ]
        module = self._model_class.lazy_init(
            config=easydel_config,
            dtype=self.dtype,
            param_dtype=self.dtype,
            precision=None,
            rngs=nnx.Rngs(0),
        )
        self._family.correct(module)
        self._drop_windows(module)
        self._stored_linears = (
            keep_as_stored(module, self._blocks(module), self.dtype) if keeps_linears_as_stored else {}
        )
        attend_over_pages(self._attentions(module), keeps_weights_in_place=keeps_weights_in_place)
        graph, params, others = module.split_module()
        self._graph = graph
        self._leaves, self._tree = jax.tree_util.tree_flatten((params, others))
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path((params, others))[0]]
        rules = _partition_rules(module)
        self.weights: list[Weight] = []
        self._places: list[int] = []
        for place, (path, leaf) in enumerate(zip(paths, self._leaves, strict=True)):
            name = _dotted(path)
            # Dropout keys and counters are not weights, and a tied head reads the embedding.
            if path[0].idx == 1 or (facts.is_tied and name.startswith(f"{self._family.head}.")):
                continue
            self._places.append(place)
            self.weights.append(self._describe(name, leaf, rules))

    def forward(
        self,
        weights: Sequence[jax.Array],
        kv: Sequence[jax.Array],
        tokens: jax.Array,
        rows: Rows,
        images: ImageFeatures | None = None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Run the decoder over some rows and write their keys and values.

        Args:
            weights: in the order of `self.weights`, then one rotary table per name in `self.rope_names`, each
                float32 [max_model_len, rotary_dim]: cosines, then sines.
            kv: k and v of every layer, [pages, page_size, kv_heads * head_dim].
            tokens: int32 [rows, length], padded.
            images: image features that replace the embeddings of some tokens.

        Returns:
            The new kv, and the last hidden state [rows, length, hidden].
        """
        decoder = getattr(self._merge(weights), self._family.decoder)
        tables = tuple(weights[len(self.weights) :])
        position_ids = jnp.minimum(rows.positions, self.max_model_len - 1)
        if rows.rope_positions is not None:
            (table,) = tables
            per_token, position_ids = rotary_rows(table, rows.rope_positions, self.facts.rope_sections)
            tables = (per_token,)
        self._give_rotary_tables(decoder, tables)
        cache = KVCache(kv, rows, self._layers)
        with self.mesh:
            if images is None:
                read: dict[str, jax.Array] = {"input_ids": tokens}
            else:
                read = {"inputs_embeds": images.merge(self._family.embed(decoder, tokens))}
            output = decoder(
                **read,
                position_ids=position_ids,
                past_key_values=cache,
                mode="decode" if tokens.shape[1] == 1 else "prefill",
            )
        return cache.arrays(), output.last_hidden_state

    def copy_pages(
        self, kv: Sequence[jax.Array], sources: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Copy one page of every group in every layer: see `kv_cache.copy_pages`."""
        return copy_pages(kv, sources, targets, self._layers)

    def logits(self, weights: Sequence[jax.Array], hidden: jax.Array) -> jax.Array:
        """Return float32 [rows, vocab] for hidden [rows, hidden]; `weights` as in `forward`."""
        module = self._merge(weights)
        with self.mesh:
            logits = module.compute_lm_logits(module.prepare_lm_head_inputs(hidden[:, None, :]))
        return logits[:, 0, :].astype(jnp.float32)

    def kv_axes(self) -> PartitionAxes:
        """Return how a pool is split: pages over dp, and heads over tp if tp divides them."""
        heads = "tp" if self.facts.num_kv_heads % self.axis_sizes["tp"] == 0 else None
        return ("dp", None, heads)

    def _merge(self, weights: Sequence[jax.Array]) -> Any:
        leaves: list[Any] = [_placeholder(leaf) for leaf in self._leaves]
        for place, weight in zip(self._places, weights[: len(self.weights)], strict=True):
            leaves[place] = weight
        params, others = jax.tree_util.tree_unflatten(self._tree, leaves)
        return self._model_class.merge_module(self._graph, params, others)

    def _describe(self, name: str, leaf: Any, rules: Sequence[tuple[str, Any]]) -> Weight:
        import re

        path = name.replace(".", "/")
        spec = next(spec for pattern, spec in rules if re.match(pattern, path))
        stem, _, _ = name.rpartition(".")
        shape = tuple(leaf.shape)
        parts = self._family.parts(name, shape)
        stored = self._stored_linears.get(stem, {}) if name.endswith(".kernel") else {}
        if stored:
            # [out, in], where others are [in, out].
            parts = tuple(
                dataclasses.replace(part, is_transposed=not part.is_transposed)
                for path in stored
                for part in self._family.parts(f"{path}.kernel", shape)
            )
        # tp may be a multiple of the KV heads: then every device holds all of them.
        is_kv = stem.endswith(("k_proj", "v_proj"))
        dropped = {"tp"} if is_kv and self.facts.num_kv_heads % self.axis_sizes["tp"] else set()
        return Weight(
            name=name,
            shape=shape,
            dtype=jnp.dtype(leaf.dtype).name,
            axes=_fit(shape, tuple(spec), self.axis_sizes, dropped),
            parts=parts,
            joined_rows=tuple(stored.values()),
        )

    def _give_rotary_tables(self, decoder: Any, tables: Sequence[jax.Array]) -> None:
        """Replace EasyDeL's tables, which are cast to bfloat16, with ours.

        A table's width decides how much of a head it rotates: `get_rope` in layers/rotary/_rotary.py would
        multiply by partial_rotary_factor again in families like StableLM, which have already applied it.
        """
        from easydel.infra.utils import ModuleCaches

        for attribute, table in zip(self._family.ropes.values(), tables, strict=True):
            decoder.__dict__[attribute] = ModuleCaches(table)
        widths = {table.shape[-1] for table in tables}
        if len(widths) == 1:
            for layer in getattr(decoder, self._family.layers):
                getattr(layer, self._family.attention).rotary.rotary_dim = min(widths)

    def _drop_windows(self, module: Any) -> None:
        """Remove windows from EasyDeL, which applies them incorrectly: see `KVCacheView`."""
        for attention in self._attentions(module):
            attention.sliding_window = None

    def _blocks(self, module: Any) -> Iterator[str]:
        """Yield the path of every attention and MLP."""
        decoder, layers = self._family.decoder, self._family.layers
        for place, _ in enumerate(getattr(getattr(module, decoder), layers)):
            for name in (self._family.attention, "mlp"):
                yield f"{decoder}.{layers}.{place}.{name}"

    def _attentions(self, module: Any) -> list[Any]:
        layers = getattr(getattr(module, self._family.decoder), self._family.layers)
        return [getattr(layer, self._family.attention) for layer in layers]


def _placeholder(leaf: Any) -> Any:
    """Return a constant for a leaf that no program reads."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _dotted(path: Sequence[Any]) -> str:
    keys = [getattr(part, "key", getattr(part, "name", None)) for part in path[1:]]
    return ".".join(str(key) for key in keys if key not in (None, "value"))


def _partition_rules(module: Any) -> Sequence[tuple[str, Any]]:
    return module.resolve_shardings_automatically()


def _fit(
    shape: tuple[int, ...], spec: tuple[Any, ...], sizes: Mapping[str, int], dropped: set[str]
) -> PartitionAxes:
    """Keep the axes of a PartitionSpec that divide the shape; `jax.device_put` rejects uneven splits."""
    axes: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, (*spec, *[None] * (len(shape) - len(spec))), strict=False):
        kept: tuple[str, ...] = ()
        pieces = 1
        for name in axis_names(axis):
            if name not in dropped and size % (pieces * sizes[name]) == 0:
                kept += (name,)
                pieces *= sizes[name]
        axes.append(kept if len(kept) > 1 else kept[0] if kept else None)
    return tuple(axes)


def rotary_rows(
    table: jax.Array, positions: jax.Array, sections: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Return a table with one row per token, for tokens that rotate by time, row and column (M-RoPE).

    Each pair of a head belongs to one of the three axes, in sections. So a token's row combines three rows
    of the usual table.

    Source: transformers 5.5, `apply_multimodal_rotary_pos_emb` in `models/qwen2_vl/modeling_qwen2_vl.py`.

    Args:
        table: float32 [max_model_len, rotary_dim], cosines, then sines.
        positions: int32 [rows, axes, length]; padding positions beyond the table use its last row.
        sections: pairs that rotate by each axis; rotary_dim / 2 in total.

    Returns:
        float32 [rows * length, rotary_dim], and the row index of each token, int32 [rows, length].
    """
    rows, _, length = positions.shape
    half = table.shape[1] // 2
    pieces: list[jax.Array] = []
    for first_column in (0, half):
        start = first_column
        for axis, num_pairs in enumerate(sections):
            columns = table[:, start : start + num_pairs]
            pieces.append(columns.at[positions[:, axis]].get(mode="clip"))
            start += num_pairs
    per_token = jnp.concatenate(pieces, axis=-1).reshape(rows * length, 2 * half)
    return per_token, jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)

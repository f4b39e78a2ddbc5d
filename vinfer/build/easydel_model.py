"""EasyDeL as a compiler front end: the only module that imports it.

Takes a normalised checkpoint config, builds the EasyDeL module without its weights, and offers what the
programs need: the list of weights with their PartitionSpecs and sources, a forward pass over our KV cache,
and the LM head. Each correction of EasyDeL 0.3.0 stands here, next to the fact that makes it necessary.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vinfer.build.kv_cache import KVCache, Rows
from vinfer.bundle import MESH_AXES, PartitionAxes, axis_names
from vinfer.errors import BuildError

ROPE_TABLE = "rope_table"

# model_type -> module under easydel.modules, config class, causal LM class.
FAMILIES = {
    "llama": ("llama", "LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight argument of the programs.

    Attributes:
        name: EasyDeL's path, joined by dots.
        axes: a PartitionSpec that the mesh really divides.
        source: tensor name in the checkpoint.
        is_transposed: the checkpoint stores [out, in], the program takes [in, out].
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes
    source: str
    is_transposed: bool


def import_easydel() -> None:
    """Import EasyDeL so that it neither needs torch nor touches this process's settings.

    - `easydel.modules` imports all ~70 families, and some of them (glm4v_moe) fail where torch is missing,
      because they patch torch classes of transformers. An empty package in its place leaves each family
      importable on its own.
    - Importing initialises jax.distributed unless ENABLE_DISTRIBUTED_INIT=0.
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
        model_type: a key of FAMILIES.
        config: normalised keys, as the family's EasyDeL config class reads them.
        dtype: of weights, activations and KV cache: float32, bfloat16 or float16.
        mesh: size of every axis of MESH_AXES.
        max_model_len: rows of the RoPE table and of the KV cache.
        splits_tied_head: store a tied LM head a second time as [hidden, vocab]. XLA on the CPU multiplies
            by a transposed embedding four times slower than by a stored transpose.
    """

    def __init__(
        self,
        *,
        model_type: str,
        config: Mapping[str, Any],
        dtype: str,
        mesh: Mapping[str, int],
        max_model_len: int,
        splits_tied_head: bool,
    ) -> None:
        import_easydel()
        from flax import nnx

        module_name, config_name, model_name = FAMILIES[model_type]
        family = importlib.import_module(f"easydel.modules.{module_name}")
        self.is_tied = bool(config.get("tie_word_embeddings", False))
        self._head_is_tied = self.is_tied and not splits_tied_head
        easydel_config = getattr(family, config_name)(
            **{**config, "tie_word_embeddings": self._head_is_tied, "rope_scaling": None}
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
        self.num_layers = int(easydel_config.num_hidden_layers)
        self.num_kv_heads = int(easydel_config.num_key_value_heads)
        self.head_dim = int(easydel_config.head_dim)
        self.vocab_size = int(easydel_config.vocab_size)
        self.max_model_len = max_model_len
        self.mesh: Mesh = easydel_config.mesh
        self.axis_sizes = dict(mesh)
        self._model_class = getattr(family, model_name)
        module = self._model_class.lazy_init(
            config=easydel_config,
            dtype=self.dtype,
            param_dtype=self.dtype,
            precision=None,
            rngs=nnx.Rngs(0),
        )
        _refuse_windows(module)
        graph, params, others = module.split_module()
        self._graph = graph
        self._leaves, self._tree = jax.tree_util.tree_flatten((params, others))
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path((params, others))[0]]
        rules = _partition_rules(module)
        self.weights: list[Weight] = []
        self._places: list[int] = []
        for place, (path, leaf) in enumerate(zip(paths, self._leaves, strict=True)):
            name = _dotted(path)
            # Dropout keys and counters are no weights, and a tied head reads the embedding.
            if path[0].idx == 1 or (self._head_is_tied and name.startswith("lm_head.")):
                continue
            self._places.append(place)
            self.weights.append(self._describe(name, leaf, rules))

    def forward(
        self,
        weights: Sequence[jax.Array],
        kv: Sequence[jax.Array],
        tokens: jax.Array,
        rows: Rows,
        *,
        rope_table: jax.Array,
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Run the decoder over some rows; write their keys and values.

        Args:
            weights: in the order of `self.weights`.
            kv: k and v of every layer, [num_slots, max_model_len, kv_heads, head_dim].
            tokens: int32 [rows, length], padded.
            rope_table: float32 [max_model_len, rotary_dim]: cosines, then sines.

        Returns:
            The new kv, and the last hidden state [rows, length, hidden].
        """
        from easydel.infra.utils import ModuleCaches
        from ejkernel.types import MaskInfo

        module = self._merge(weights)
        # EasyDeL casts its own table to bfloat16; ours is float32 and an argument of the program.
        module.model.__dict__["frequencies"] = ModuleCaches(rope_table)
        mask_info = MaskInfo.from_attention_mask(rows.attention_mask())
        # Without this mark EasyDeL applies a second causal mask that counts rows from 0.
        object.__setattr__(mask_info, "_causal_baked", True)
        on_mesh = NamedSharding(self.mesh, PartitionSpec(*self.kv_axes())) if self.mesh.size > 1 else None
        cache = KVCache(kv, rows, on_mesh)
        with self.mesh:
            output = module.model(
                input_ids=tokens,
                position_ids=jnp.minimum(rows.positions, self.max_model_len - 1),
                mask_info=mask_info,
                past_key_values=cache,
                mode="decode" if tokens.shape[1] == 1 else "prefill",
            )
        return cache.arrays(), output.last_hidden_state

    def logits(self, weights: Sequence[jax.Array], hidden: jax.Array) -> jax.Array:
        """Return float32 [rows, vocab] for hidden [rows, hidden]."""
        module = self._merge(weights)
        with self.mesh:
            logits = module.compute_lm_logits(module.prepare_lm_head_inputs(hidden[:, None, :]))
        return logits[:, 0, :].astype(jnp.float32)

    def kv_axes(self) -> PartitionAxes:
        """Return how one KV array is split: slots over dp, heads over tp where tp divides them."""
        heads = "tp" if self.num_kv_heads % self.axis_sizes["tp"] == 0 else None
        return ("dp", None, heads, None)

    def _merge(self, weights: Sequence[jax.Array]) -> Any:
        leaves: list[Any] = [_placeholder(leaf) for leaf in self._leaves]
        for place, weight in zip(self._places, weights, strict=True):
            leaves[place] = weight
        params, others = jax.tree_util.tree_unflatten(self._tree, leaves)
        return self._model_class.merge_module(self._graph, params, others)

    def _describe(self, name: str, leaf: Any, rules: Sequence[tuple[str, Any]]) -> Weight:
        import re

        path = name.replace(".", "/")
        spec = next(spec for pattern, spec in rules if re.match(pattern, path))
        stem, _, kind = name.rpartition(".")
        shape = tuple(leaf.shape)
        source = f"{stem}.weight" if kind in ("kernel", "embedding") else name
        if stem == "lm_head" and self.is_tied:
            source = "model.embed_tokens.weight"
        # tp may be a multiple of the KV heads: then every device keeps all of them.
        is_kv = stem.endswith(("k_proj", "v_proj"))
        dropped = {"tp"} if is_kv and self.num_kv_heads % self.axis_sizes["tp"] else set()
        return Weight(
            name=name,
            shape=shape,
            dtype=jnp.dtype(leaf.dtype).name,
            axes=_fit(shape, tuple(spec), self.axis_sizes, dropped),
            source=source,
            is_transposed=kind == "kernel" and len(shape) == 2,
        )


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
    """Keep of a PartitionSpec what divides the shape; `jax.device_put` refuses uneven splits."""
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


def _refuse_windows(module: Any) -> None:
    """EasyDeL cuts sliding windows wrongly in prefill (`_flexible.py::_apply_sliding_window`)."""
    for index, layer in enumerate(module.model.layers):
        window = getattr(layer.self_attn, "sliding_window", None)
        if window is not None:
            raise BuildError(f"layer {index} has a sliding window of {window}: windows are not served yet")

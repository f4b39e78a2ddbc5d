"""Measures what the corrections in `vinfer.compiler.easydel` correct; prints one JSON object.

    python -m tiny.easydel_facts imports               effects of importing EasyDeL without our import
    python -m tiny.easydel_facts models CHECKPOINT     its models with one correction removed

Runs in its own process: an import of EasyDeL takes 15 to 27 s and changes the process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from tiny.easydel_attentions import facts_of_its_attentions
from tiny.easydel_dense import facts_of_its_dense_families
from tiny.easydel_mixtures import errors_of_its_mixtures


class NoMesh(contextlib.nullcontext[None]):
    """A mesh of one device whose context does nothing."""

    size = 1


def import_facts() -> dict[str, Any]:
    import jax
    from eformer.executor import DistributedConfig

    initialised = []
    DistributedConfig.initialize = lambda self: initialised.append(self)
    os.environ.pop("ENABLE_DISTRIBUTED_INIT", None)
    cache_dir = jax.config.values["jax_compilation_cache_dir"]
    import easydel

    facts: dict[str, Any] = {
        "has_torch": importlib.util.find_spec("torch") is not None,
        "initialises_distributed": bool(initialised),
        "moves_compilation_cache": jax.config.values["jax_compilation_cache_dir"] != cache_dir,
        "modules_without_torch": "imported",
    }
    try:
        import easydel.modules  # noqa: F401
    except Exception as error:  # noqa: BLE001 - any exception is the fact
        facts["modules_without_torch"] = f"{type(error).__name__}: {error}"
    return facts


def model_facts(directory: Path) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vinfer.checkpoint.checkpoint import open_checkpoint
    from vinfer.checkpoint.family import ONE_ROPE
    from vinfer.checkpoint.source import resolve_source
    from vinfer.compiler import kv_cache
    from vinfer.compiler.easydel import model as easydel_model

    checkpoint = open_checkpoint(resolve_source(str(directory)))
    max_model_len, page_size, length = 32, 8, 8
    model = easydel_model.EasyDeLModel(
        model_type=checkpoint.model_type,
        config=checkpoint.config,
        facts=checkpoint.facts,
        dtype="float32",
        mesh={"dp": 1, "fsdp": 1, "ep": 1, "tp": 1, "sp": 1},
        max_model_len=max_model_len,
        attention_block_len=page_size,
        keeps_weights_in_place=False,
    )
    from easydel.modules.llama import LlamaConfig
    from easydel.modules.qwen2 import Qwen2Config

    draw = np.random.default_rng(0)
    weights = [draw.normal(size=w.shape, scale=w.shape[0] ** -0.5).astype(np.float32) for w in model.weights]
    num_pages = max_model_len // page_size
    pool_shape = (num_pages, page_size, checkpoint.facts.num_kv_heads * checkpoint.facts.key_dim)
    page_tables = np.arange(num_pages, dtype=np.int32)[None, None, None]
    tokens = draw.integers(0, 256, (1, 2 * length)).astype(np.int32)
    weights.append(checkpoint.ropes[ONE_ROPE].table(max_model_len))

    def hidden_of_second_chunk() -> Any:
        kv: Any = [jnp.zeros(pool_shape) for _ in range(2 * checkpoint.facts.num_layers)]

        def run(weights: Any, kv: Any, tokens: Any, start: Any) -> Any:
            rows = kv_cache.Rows(
                page_tables=page_tables,
                positions=start + jnp.arange(length)[None],
                max_model_len=max_model_len,
            )
            return model.forward(weights, kv, tokens, rows)

        jitted = jax.jit(run)
        kv, _ = jitted(weights, kv, tokens[:, :length], 0)
        return np.asarray(jitted(weights, kv, tokens[:, length:], length)[1])

    def failure() -> str:
        try:
            hidden_of_second_chunk()
        except Exception as error:  # noqa: BLE001 - any exception is the fact
            return f"{type(error).__name__}: {error}"
        return "none"

    facts: dict[str, Any] = {"as_it_is": failure()}

    mesh = model.mesh
    model.mesh = NoMesh()  # type: ignore[assignment]
    facts["outside_mesh"] = failure()
    model.mesh = mesh

    kv_cache.KVCacheView.key = property(lambda self: self.k)  # type: ignore[assignment]
    facts["with_a_key_in_the_view"] = failure()
    kv_cache.KVCacheView.key = None

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
    )
    frequencies = config.get_basic_frequencies()
    facts["rope_table_dtype"] = str(jax.tree.leaves(frequencies)[0].dtype)
    facts["rope_theta_of_rope_parameters"] = float(config.rope_theta)
    facts["attn_dtype_by_default"] = str(jnp.dtype(config.attn_dtype))
    facts |= facts_of_its_dense_families()
    facts["attentions"] = facts_of_its_attentions()
    facts["errors_of_mixtures"] = errors_of_its_mixtures()
    facts["qwen2_layer_types_by_default"] = sorted(set(Qwen2Config(num_hidden_layers=30).layer_types))
    return facts


if __name__ == "__main__":
    found = import_facts() if sys.argv[1] == "imports" else model_facts(Path(sys.argv[2]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")

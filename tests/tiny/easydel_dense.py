"""Measures EasyDeL's dense families without our corrections; needs EasyDeL imported."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}


def facts_of_its_dense_families() -> dict[str, Any]:
    return {
        "olmo2_norms": _olmo2_norms(),
        "cohere2_rotates_without_window": _cohere2_rotates_without_window(),
        "cohere2_tied_logits_of_a_zero_embedding": _cohere2_tied_logits_of_a_zero_embedding(),
    }


def _built(config: Any, module_class: Any, **arguments: Any) -> Any:
    import jax.numpy as jnp
    from flax import nnx

    config.add_basic_configurations(
        sharding_axis_dims=(1, 1, 1, 1, 1), attn_mechanism="vanilla", attn_dtype=jnp.float32
    )
    return module_class(
        config, dtype=jnp.float32, param_dtype=jnp.float32, precision=None, rngs=nnx.Rngs(0), **arguments
    )


def _olmo2_norms() -> dict[str, Any]:
    """Return the size and the dtype of each norm in a model of float32, whose q is 32 wide and k 16."""
    from easydel.modules.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2Config

    attention = _built(Olmo2Config(**SIZES), Olmo2Attention, layer_idx=0)
    kernels = {name: getattr(attention, name).kernel.value for name in ("q_norm", "k_norm")}
    return {name: [kernel.shape[0], str(kernel.dtype)] for name, kernel in kernels.items()}


def _cohere2_rotates_without_window() -> bool:
    import jax.numpy as jnp
    from easydel.modules.cohere2.modeling_cohere2 import Cohere2Attention, Cohere2Config

    config = Cohere2Config(**SIZES, layer_types=["sliding_attention"], sliding_window=None)
    attention = _built(config, Cohere2Attention, layer_idx=0)
    query, key = jnp.ones((1, 3, 4, 8)), jnp.ones((1, 3, 2, 8))
    rotated, _ = attention._apply_rotary(query, key, jnp.arange(3)[None], None)
    return bool((rotated != query).any())


def _cohere2_tied_logits_of_a_zero_embedding() -> float:
    """Return the largest logit; 0 if the head is the embedding."""
    import jax.numpy as jnp
    from easydel.modules.cohere2.modeling_cohere2 import Cohere2Config, Cohere2ForCausalLM

    model = _built(Cohere2Config(**SIZES, tie_word_embeddings=True), Cohere2ForCausalLM)
    embedding = model.model.embed_tokens.embedding
    embedding.value = jnp.zeros_like(embedding.value)
    with model.mesh:
        return float(jnp.abs(model.apply_lm_head(jnp.ones((1, 1, 32)))).max())

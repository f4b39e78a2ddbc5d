"""Compares each of EasyDeL's mixture-of-experts methods with ours; needs EasyDeL imported."""

from __future__ import annotations

import importlib
from typing import Any

Sizes = dict[str, int]

_BLOCKS: dict[str, tuple[str, str, Sizes]] = {
    "mixtral": ("MixtralConfig", "MixtralSparseMoeBlock", {"num_local_experts": 5}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeSparseBlock",
        {"num_experts": 5, "moe_intermediate_size": 48},
    ),
    "gpt_oss": ("GptOssConfig", "GptOssMLP", {"num_local_experts": 5}),
}


def errors_of_its_mixtures() -> dict[str, dict[str, float]]:
    """Return {family: {MoEMethods: largest error as a fraction of the largest output}} in float32."""
    import jax

    hidden = jax.random.normal(jax.random.key(0), (2, 9, 32))
    return {family: _errors(family, *names, hidden) for family, names in _BLOCKS.items()}


def _errors(family: str, config_class: str, block_class: str, sizes: Sizes, hidden: Any) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    from easydel.layers.moe import MoEMethods
    from flax import nnx

    from vinfer.compiler.easydel.mixtures import compute_exactly

    modeling = importlib.import_module(f"easydel.modules.{family}.modeling_{family}")
    config = getattr(modeling, config_class)(
        hidden_size=hidden.shape[-1], intermediate_size=48, num_experts_per_tok=2, **sizes
    )
    # Without the flag, the fused method tries grouped kernels for minutes.
    config.add_basic_configurations(sharding_axis_dims=(1, 1, 1, 1, 1), moe_force_xla_gmm=True)

    def output(method: Any, *, is_ours: bool = False) -> Any:
        block = getattr(modeling, block_class)(
            config=config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
        # The initial weights are too small for an activation or router to matter.
        params = nnx.state(block, nnx.Param)
        for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
            leaf.value = jax.random.normal(jax.random.key(leaf.value.size), leaf.value.shape) / 4
        nnx.update(block, params)
        block.module_moe_method = method
        # The first call sets an attribute, which is too late inside a trace.
        block._configure_hooks_for_routing_strategy()
        if is_ours:
            compute_exactly(block)
        with config.mesh:
            return jax.jit(lambda hidden: block(hidden)[0])(hidden)

    methods = (MoEMethods.FUSED_MOE, MoEMethods.STANDARD_MOE, MoEMethods.DENSE_MOE)
    ours = output(methods[0], is_ours=True)
    return {
        method.name: float(jnp.abs(output(method) - ours).max() / jnp.abs(ours).max()) for method in methods
    }

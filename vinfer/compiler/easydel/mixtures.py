"""EasyDeL's mixtures of experts, computed exactly.

EasyDeL 0.3.0 has three implementations in `BaseMoeModule.moe_call` (`layers/moe/_moe_module.py`). None is
correct for every family (measured in float32 by `tests/tiny/easydel_mixtures.py`):

- FUSED_MOE applies the softmax of gpt-oss's router three times. It is correct for Mixtral and Qwen3-MoE,
  but rounds their probabilities to bfloat16 before it chooses, which creates ties, and computes float16
  in bfloat16. It uses a Pallas kernel if the tracing process has a TPU, so the export depends on the machine.
- STANDARD_MOE divides logits by their sum for Mixtral, uses logits as weights in Qwen3-MoE, and
  multiplies in bfloat16 whatever the dtype (`layers/linears/_linear_moe.py`).
- DENSE_MOE normalizes weights even with `norm_topk_prob: false`, applies gpt-oss's softmax twice, and
  gathers whole experts per token.

So vinfer keeps EasyDeL's weights, router and activations, and `vinfer.compiler.mixture` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vinfer.compiler.mixture import Experts, mix, route


def compute_mixtures_exactly(module: Any) -> None:
    """Replace the computation of every mixture in a causal LM of Llama's layout."""
    from easydel.layers import BaseMoeModule

    for layer in module.model.layers:
        for block in (getattr(layer, name, None) for name in ("mlp", "block_sparse_moe")):
            if isinstance(block, BaseMoeModule):
                compute_exactly(block)


def compute_exactly(block: Any) -> None:
    """Replace `moe_call` of one mixture.

    Changes the block's class, because that survives `split_module` and `merge_module`.
    """
    cls = type(block)
    object.__setattr__(block, "__class__", type(cls.__name__, (cls,), {"moe_call": _moe_call}))


def _moe_call(
    self: Any,
    *,
    hidden_state: jax.Array,
    gate_layer: Callable[[jax.Array], jax.Array],
    wi_kernel: jax.Array,
    wu_kernel: jax.Array,
    wd_kernel: jax.Array,
    wi_bias: jax.Array | None = None,
    wu_bias: jax.Array | None = None,
    wd_bias: jax.Array | None = None,
    act_fn: Callable[[jax.Array], jax.Array],
    ffn_activation: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    **_: Any,
) -> tuple[jax.Array, jax.Array]:
    """Replace EasyDeL's method of the same name and signature.

    Args:
        hidden_state: [batch, length, hidden].

    Returns:
        [batch, length, hidden], and the router's logits [batch * length, experts].
    """
    hidden = hidden_state.reshape(-1, hidden_state.shape[-1])
    logits = gate_layer(hidden)
    # Only Qwen's config has the switch; Mixtral and gpt-oss always normalize.
    is_normalised = getattr(self.config, "norm_topk_prob", True)
    weights, chosen = route(logits, self.num_experts_per_tok, is_normalised=is_normalised)
    experts = Experts(
        gate=wi_kernel,
        up=wu_kernel,
        down=wd_kernel,
        gate_bias=wi_bias,
        up_bias=wu_bias,
        down_bias=wd_bias,
        activation=ffn_activation or (lambda gate, up: act_fn(gate) * up),
    )
    return mix(hidden, weights, chosen, experts).reshape(hidden_state.shape), logits

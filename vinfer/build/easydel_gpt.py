"""What EasyDeL 0.3.0 gets wrong in GPT-2 and GPT-NeoX, put right on the built module."""

from __future__ import annotations

import functools
from typing import Any


def correct_gpt_neox(module: Any) -> None:
    """Split the fused projection as it is stored: query, key and value of head 0, then of head 1, and so on.

    `UnifiedAttention.forward` takes all queries for the first third, all keys for the second; its way for
    grouped heads takes them head by head, and with as many key heads as query heads that is this layout.
    """
    for layer in module.gpt_neox.layers:
        layer.attention.use_gqa = True


def correct_gpt2(module: Any) -> None:
    """Use EasyDeL's general attention and its general linear layers.

    - `Conv1D` (modeling_gpt2.py) makes a bias as long as its input, so that what it adds up does not fit.
    - `GPT2Attention.__call__` masks causally a second time, counting a chunk's rows from 0, whatever the
      mask says of itself. `UnifiedAttention.__call__` does not.
    - `GPT2Attention._create_attention_performer` knows one scale and reads neither `scale_attn_weights` nor
      `scale_attn_by_inverse_layer_idx`.
    """
    config = module.config
    for index, layer in enumerate(module.transformer.h):
        attention, mlp = layer.attn, layer.mlp
        attention.c_attn = _linear(attention.c_attn)
        attention.c_proj = _linear(attention.c_proj)
        mlp.c_fc, mlp.c_proj = _linear(mlp.c_fc), _linear(mlp.c_proj)
        attention.__class__ = _attention_class()
        scale = float(attention.head_dim) ** -0.5 if config.scale_attn_weights else 1.0
        attention.attention_performer.softmax_scale = (
            scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale
        )


@functools.cache
def _attention_class() -> type[Any]:
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules.gpt2.modeling_gpt2 import GPT2Attention

    names = {"query_key_value_projection": "c_attn", "output_projection": "c_proj"}
    members = {"__call__": UnifiedAttention.__call__, "projection_mapping": names}
    return type("GPT2Attention", (GPT2Attention,), members)


def _linear(conv: Any) -> Any:
    """Make a linear layer, without values, of the sizes of a Conv1D, whose kernel is [out, in]."""
    from easydel.layers import ColumnParallelLinear, RowParallelLinear
    from flax import nnx

    num_outputs, num_inputs = conv.kernel.value.shape
    linear = RowParallelLinear if conv.sharding_axis == "row" else ColumnParallelLinear

    def make() -> Any:
        return linear(
            num_inputs,
            num_outputs,
            dtype=conv.dtype,
            param_dtype=conv.param_dtype,
            precision=conv.precision,
            rngs=nnx.Rngs(0),
        )

    return nnx.eval_shape(make)

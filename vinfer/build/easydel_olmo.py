"""Corrections of EasyDeL 0.3.0's OLMo 2 and 3; imports EasyDeL."""

from __future__ import annotations

from typing import Any


def give_each_norm_its_size(module: Any) -> None:
    """Exchange OLMo 2's norms of q and k, and give them the dtype of the other weights.

    `olmo2/modeling_olmo2.py`: `_create_q_norm` takes the size of k and `_create_k_norm` that of q, so that
    no checkpoint with fewer heads in k fits; neither passes `param_dtype` on, and the default is bfloat16.
    """
    from easydel.layers import RMSNorm
    from flax import nnx

    for layer in module.model.layers:
        attention = layer.self_attn
        for name, num_heads in (("q_norm", attention.num_heads), ("k_norm", attention.num_key_value_heads)):
            norm = RMSNorm(
                num_heads * attention.head_dim,
                eps=module.config.rms_norm_eps,
                dtype=module.dtype,
                param_dtype=module.param_dtype,
                rngs=nnx.Rngs(0),
            )
            setattr(attention, name, norm)


def rotate_by_layer_type(module: Any) -> None:
    """Give OLMo 3's sliding layers a table of their own: see `families/olmo.py`.

    `olmo3/modeling_olmo3.py`: `Olmo3Model.__call__` hands one table to every layer.
    """
    from easydel.modules.olmo3.modeling_olmo3 import Olmo3Attention, Olmo3Model

    class Decoder(Olmo3Model):  # type: ignore[misc]
        @property
        def frequencies(self) -> dict[str, Any]:
            return {name: self.__dict__[f"{name}_frequencies"] for name in ROPES}

    class Attention(Olmo3Attention):  # type: ignore[misc]
        def _apply_rotary(self, query: Any, key: Any, positions: Any, frequencies: Any) -> Any:
            return super()._apply_rotary(query, key, positions, frequencies[self.attention_type_name])

    module.model.__class__ = Decoder
    for layer in module.model.layers:
        layer.self_attn.__class__ = Attention


ROPES = ("full_attention", "sliding_attention")

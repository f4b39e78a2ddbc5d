"""What EasyDeL 0.3.0 gets wrong in GLM-4, put right on the built module."""

from __future__ import annotations

from typing import Any

from vinfer.build.easydel_attention import drop_output_bias


def correct_glm4(module: Any) -> None:
    """Rotate neighbouring pairs, and take the bias off o_proj.

    - `Glm4Attention` takes the usual rotary module, which pairs the two halves of a head; transformers' GLM-4
      pairs dimensions 0 and 1, 2 and 3, and so on (`rotate_half` in modeling_glm4.py).
    - See `drop_output_bias`.
    """
    for layer in module.model.layers:
        layer.self_attn.rotary.is_neox_style = False
        drop_output_bias(layer.self_attn)

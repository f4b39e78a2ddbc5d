"""Corrections of EasyDeL 0.3.0's Phi-3; imports EasyDeL."""

from __future__ import annotations

from typing import Any


def mask_once(module: Any) -> None:
    """Keep Phi-3's attention from masking a second time, by row numbers that start from 0 in each chunk.

    `phi3/modeling_phi3.py`: `Phi3Attention.__call__` says `causal=True` to the attention operation even
    where the mask that it hands over is marked as causal already, which `UnifiedAttention` heeds.
    """
    from easydel.layers.attention import FlexibleAttentionModule

    class Performer(FlexibleAttentionModule):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> Any:
            return super().forward(*arguments, **options | {"causal": False})

    for layer in module.model.layers:
        layer.self_attn.attention_performer.__class__ = Performer

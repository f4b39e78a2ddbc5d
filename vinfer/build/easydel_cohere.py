"""Corrections of EasyDeL 0.3.0's Cohere 2; imports EasyDeL."""

from __future__ import annotations

from typing import Any


def correct_cohere2(module: Any) -> None:
    """Rotate by layer type, and read a tied head.

    `cohere2/modeling_cohere2.py`:

    - `Cohere2Attention._apply_rotary` rotates where `self.sliding_window` is set; ours never is.
    - `Cohere2ForCausalLM.apply_lm_head` multiplies by `lm_head` even where the head is the embedding.
    """
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules._base import BaseCausalLMModule
    from easydel.modules.cohere2.modeling_cohere2 import Cohere2Attention, Cohere2ForCausalLM

    class SlidingAttention(Cohere2Attention):  # type: ignore[misc]
        _apply_rotary = UnifiedAttention._apply_rotary

    class FullAttention(Cohere2Attention):  # type: ignore[misc]
        def _apply_rotary(self, query: Any, key: Any, positions: Any, frequencies: Any) -> tuple[Any, Any]:
            return query, key

    class CausalLM(Cohere2ForCausalLM):  # type: ignore[misc]
        def apply_lm_head(self, hidden_states: Any) -> Any:
            return BaseCausalLMModule.apply_lm_head(self, hidden_states) * self.logit_scale

    module.__class__ = CausalLM
    for layer, layer_type in zip(module.model.layers, module.config.layer_types, strict=True):
        is_full = layer_type == "full_attention"
        layer.self_attn.__class__ = FullAttention if is_full else SlidingAttention

"""What EasyDeL 0.3.0's Gemma 2 leaves out."""

from __future__ import annotations

import functools
from typing import Any


def cap_attention_logits(module: Any) -> None:
    """Soft-cap attention scores at `attn_logit_softcapping`, as transformers does.

    EasyDeL's config has the key, but nothing passes it to the kernel, which could take it:
    `layers/attention/_unified.py::UnifiedAttention.forward` calls the performer without `logits_soft_cap`.
    """
    cap = module.config.attn_logit_softcapping
    if cap is None:
        return
    for layer in module.model.layers:
        performer = layer.self_attn.attention_performer
        performer.__class__ = _capped_performer()
        performer.logits_soft_cap = cap


@functools.cache
def _capped_performer() -> type:
    from easydel.layers.attention import FlexibleAttentionModule

    class CappedAttention(FlexibleAttentionModule):  # type: ignore[misc, unused-ignore]
        """Attention with a soft-cap of its own."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs, logits_soft_cap=self.logits_soft_cap)

        __call__ = forward

    return CappedAttention

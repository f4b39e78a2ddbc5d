"""What EasyDeL 0.3.0's Gemma 2 leaves out, and where its Gemma 3 scales embeddings."""

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


def scaled_embeddings(decoder: Any, tokens: Any) -> Any:
    """Embed tokens as `Gemma3TextScaledWordEmbedding` of transformers does; it scales no picture's features.

    `modules/gemma3/modeling_gemma3.py::Gemma3TextModel.forward` scales what it looks up itself, and takes
    `inputs_embeds` as they are.
    """
    return decoder.embed_tokens(tokens) * decoder.config.hidden_size**0.5


@functools.cache
def _capped_performer() -> type:
    from easydel.layers.attention import FlexibleAttentionModule

    class CappedAttention(FlexibleAttentionModule):  # type: ignore[misc, unused-ignore]
        """Attention with a soft-cap of its own."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs, logits_soft_cap=self.logits_soft_cap)

        __call__ = forward

    return CappedAttention

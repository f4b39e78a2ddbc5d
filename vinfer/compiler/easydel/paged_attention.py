"""Puts vinfer's attention over pages in place of EasyDeL's attention operations.

EasyDeL's layers project, normalize and rotate; then their performer attends. Ours reads the pages of the
layer's cache view (`compiler.kv_cache`), which knows what each token sees.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from jax import lax


def attend_over_pages(attentions: Iterable[Any], *, keeps_weights_in_place: bool) -> None:
    """Replace the performer of each attention layer.

    Changes classes, because these survive `split_module` and `merge_module`. A correction may have set
    `logits_soft_cap`.

    Args:
        keeps_weights_in_place: hide from the compiler that queries, keys and values are split into heads.
            Otherwise XLA on a TPU wants the projections transposed, and each dispatch copies their weights.
    """
    for attention in attentions:
        if keeps_weights_in_place:
            attention.__class__ = _with_barriers(attention.__class__)
        performer = attention.attention_performer
        performer.__class__ = _paged_attention()
        performer.logits_soft_cap = getattr(performer, "logits_soft_cap", None)


@functools.cache
def _with_barriers(attention_class: Any) -> type:
    """Return the class with a barrier between its projections and what splits them into heads."""

    def preprocess(self: Any, *projected: Any) -> tuple[Any, ...]:
        return tuple(
            lax.optimization_barrier(array) for array in attention_class._preprocess_qkv(self, *projected)
        )

    return type(attention_class.__name__, (attention_class,), {"_preprocess_qkv": preprocess})


@functools.cache
def _paged_attention() -> type:
    from easydel.layers.attention import FlexibleAttentionModule
    from easydel.operations import AttentionOutput

    class PagedAttention(FlexibleAttentionModule):  # type: ignore[misc, unused-ignore]
        """Attention over the pages of a `KVCacheView`; masks of EasyDeL are ignored."""

        def forward(self, *, query_states: Any, cache_view: Any, softmax_aux: Any = None, **_: Any) -> Any:
            output = cache_view.attend(
                query_states, scale=self.softmax_scale, soft_cap=self.logits_soft_cap, sinks=softmax_aux
            )
            return AttentionOutput(attention_weights=None, attention_outputs=output, cache_view=cache_view)

        __call__ = forward

    return PagedAttention

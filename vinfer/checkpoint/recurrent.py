"""Model types that vinfer refuses for a reason of their own: layers that keep a recurrent state.

Data only. A slot of vinfer is a stretch of a KV cache, which a chunk extends and a position names; the state
of these layers is rewritten by every token, and a padded or repeated token would spoil it.

Source: transformers 5.5, `models/*/modeling_*.py`.
"""

from __future__ import annotations

RECURRENT_MODEL_TYPES: dict[str, str] = {
    "bamba": "some layers are Mamba 2",
    "falcon_h1": "every layer has a Mamba 2 half beside attention",
    "falcon_mamba": "all layers are Mamba",
    "granitemoehybrid": "some layers are Mamba 2",
    "jamba": "some layers are Mamba",
    "lfm2": "some layers are short convolutions",
    "lfm2_moe": "some layers are short convolutions",
    "mamba": "all layers are Mamba",
    "mamba2": "all layers are Mamba 2",
    "minimax": "some layers are linear attention",
    "nemotron_h": "some layers are Mamba 2",
    "olmo_hybrid": "some layers are linear attention",
    "qwen3_5": "some layers are linear attention",
    "qwen3_5_moe": "some layers are linear attention",
    "qwen3_5_moe_text": "some layers are linear attention",
    "qwen3_5_text": "some layers are linear attention",
    "qwen3_next": "some layers are linear attention",
    "recurrent_gemma": "some layers are linear recurrent units",
    "rwkv": "all layers are RWKV",
    "xlstm": "all layers are xLSTM",
    "zamba": "some layers are Mamba",
    "zamba2": "some layers are Mamba 2",
}
"""transformers' `model_type` -> where the recurrent state is."""

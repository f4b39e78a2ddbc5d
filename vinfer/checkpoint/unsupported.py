"""Model types of transformers that vinfer rejects for a specific reason, with the reasons.

Data only. A vinfer slot is a contiguous part of a KV cache: a chunk extends it and a position indexes it.
Every token rewrites a recurrent state, so a padded or repeated token would corrupt it. Latent attention
caches something other than keys and values. Images, sound and encoders add inputs besides tokens.

Source: transformers 5.5, `models/*/modeling_*.py` and `models/auto/modeling_auto.py`.
"""

from __future__ import annotations

_RECURRENT: dict[str, str] = {
    "bamba": "some layers are Mamba 2",
    "falcon_h1": "every layer combines Mamba 2 and attention",
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
"""Which layers have recurrent state."""

_LATENT = (
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "longcat_flash",
    "mistral4",
    "youtu",
)

_WITH_IMAGES_OR_SOUND = (
    "aria",
    "aya_vision",
    "chameleon",
    "cohere2_vision",
    "deepseek_vl",
    "emu3",
    "fuyu",
    "gemma3n",
    "gemma4",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "got_ocr2",
    "granite_speech",
    "idefics",
    "idefics2",
    "idefics3",
    "internvl",
    "janus",
    "llama4",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "mllama",
    "ovis2",
    "paligemma",
    "phi4_multimodal",
    "pixtral",
    "qwen2_5_omni",
    "qwen2_audio",
    "qwen3_omni_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llava",
    "voxtral",
)

_ENCODER_DECODERS = (
    "bart",
    "blenderbot",
    "led",
    "longt5",
    "m2m_100",
    "marian",
    "mbart",
    "mt5",
    "nllb-moe",
    "pegasus",
    "plbart",
    "prophetnet",
    "switch_transformers",
    "t5",
    "t5gemma",
    "umt5",
    "whisper",
)

UNSUPPORTED_MODEL_TYPES: dict[str, str] = {
    **{
        model_type: f"{where}, and vinfer keeps no recurrent state, only KV caches"
        for model_type, where in _RECURRENT.items()
    },
    **dict.fromkeys(_LATENT, "its attention is latent, and vinfer caches only keys and values of heads"),
    **dict.fromkeys(_WITH_IMAGES_OR_SOUND, "it takes images or sound of an unsupported kind"),
    **dict.fromkeys(_ENCODER_DECODERS, "it has an encoder and a decoder, and vinfer supports only decoders"),
}
"""transformers' `model_type` -> why it is refused."""

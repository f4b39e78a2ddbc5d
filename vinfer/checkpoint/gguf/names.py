"""Translates llama.cpp's tensor names, and undoes its converter's changes to weights.

Runs in the build half, on any thread. Reads no files.

Source: `tensor_mapping.py` of gguf-py, and convert_hf_to_gguf.py, both of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.errors import CheckpointError

ROPE_FREQUENCIES = "rope_freqs.weight"
"""Not a weight: Llama 3's rotary scaling, precomputed."""

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorRules:
    """How the tensors of one architecture are named and stored.

    Attributes:
        layer_names: llama.cpp's name -> transformers' name, within a layer.
        permutes_rotary_rows: q and k rows are interleaved, for rotation of adjacent pairs.
        takes_rope_frequencies: `ROPE_FREQUENCIES` may be present.
        adds_one_to_norms: norms are stored as the multiplier; transformers stores the multiplier minus 1.
    """

    layer_names: Mapping[str, str]
    permutes_rotary_rows: bool = False
    takes_rope_frequencies: bool = False
    adds_one_to_norms: bool = False

    def hugging_face_name(self, stored: str, where: str) -> str:
        """Translate a tensor's name.

        Raises:
            CheckpointError: this architecture has no such tensor.
        """
        parts = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?(\w+)\.(weight|bias)", stored, re.ASCII)
        if parts is not None:
            layer, name, kind = parts.groups()
            if layer is None and name in _TOP_NAMES:
                return f"{_TOP_NAMES[name]}.{kind}"
            if layer is not None and name in self.layer_names:
                return f"model.layers.{int(layer)}.{self.layer_names[name]}.{kind}"
        raise CheckpointError(
            f"{where} has a tensor {stored!r} that vinfer does not know: the model is an unsupported variant"
        )

    def restore(
        self, name: str, weight: npt.NDArray[np.float32], config: ConfigKeys
    ) -> npt.NDArray[np.float32]:
        """Undo the converter's change to a weight: float32, same shape.

        Args:
            name: the tensor's name in transformers.
            config: config.json, for the numbers of heads.
        """
        module = name.split(".")[-2]
        if self.permutes_rotary_rows and module in ("q_proj", "k_proj"):
            key = "num_attention_heads" if module == "q_proj" else "num_key_value_heads"
            return unpermute_rotary_rows(weight, config.integer(key))
        if self.adds_one_to_norms and module.endswith("norm"):
            return weight - np.float32(1)
        return weight


TENSOR_RULES: dict[str, TensorRules] = {
    "gemma2": TensorRules(layer_names=_GEMMA_LAYER_NAMES, adds_one_to_norms=True),
    "gemma3": TensorRules(layer_names=_GEMMA_LAYER_NAMES, adds_one_to_norms=True),
    "llama": TensorRules(layer_names=_LAYER_NAMES, permutes_rotary_rows=True, takes_rope_frequencies=True),
    "qwen2": TensorRules(layer_names=_LAYER_NAMES),
    "qwen3": TensorRules(layer_names=_LAYER_NAMES),
}
"""By `general.architecture`; others are unsupported in GGUF."""


def unpermute_rotary_rows(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's permutation of q and k rows: float32 [num_heads * head_dim, ...]; same shape out.

    GGUF interleaves the two halves of every Llama head for adjacent-pair rotation; transformers and
    EasyDeL rotate halves. Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)

"""A GGUF file as a checkpoint: its metadata and tensors in Hugging Face terms.

Runs in the build half, on any thread. Translates llama.cpp's names, its permuted Llama projections
and its rotary factors; then the same rules as for config.json apply (`normalise`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.family import ONE_ROPE, ModelFacts, NormalisedConfig
from vinfer.checkpoint.generation import GenerationFacts, read_generation_facts
from vinfer.checkpoint.gguf_file import GgufFile, open_gguf
from vinfer.checkpoint.gguf_tokenizer import build_tokenizer_files
from vinfer.checkpoint.known_keys import GGUF_MODEL_KEYS
from vinfer.checkpoint.layout import Shape, check_layout
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope import RopeFacts
from vinfer.checkpoint.tokenizer_files import TokenizerFiles
from vinfer.errors import CheckpointError

_ROPE_FREQUENCIES = "rope_freqs.weight"

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ARCHITECTURES = ("llama", "qwen2", "qwen3")
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GgufCheckpoint:
    """See `vinfer.checkpoint.checkpoint.Checkpoint`."""

    model_type: str
    config: dict[str, object]
    ropes: dict[str, RopeFacts]
    facts: ModelFacts
    generation: GenerationFacts
    tokenizer: TokenizerFiles
    file: GgufFile
    stored_names: dict[str, str]
    """Hugging Face name -> name in the file."""
    permuted_heads: dict[str, int]
    """Hugging Face name -> number of heads, for tensors whose rows llama.cpp permuted."""

    def tensor_names(self) -> list[str]:
        return list(self.stored_names)

    def tensor_shape(self, name: str) -> Shape:
        return self.file.tensors[self.stored_names[name]].shape

    def read(self, name: str) -> npt.NDArray[Any]:
        weight = self.file.read(self.stored_names[name])
        num_heads = self.permuted_heads.get(name)
        return weight if num_heads is None else unpermute_rotary_rows(weight, num_heads)

    def write_tokenizer(self, directory: Path) -> None:
        self.tokenizer.write(directory)


def open_gguf_checkpoint(path: Path) -> GgufCheckpoint:
    """Open a GGUF file of a served architecture.

    Raises:
        CheckpointError: malformed, incomplete, or of a kind vinfer does not serve.
    """
    file = open_gguf(path)
    keys = ConfigKeys(file.metadata, str(path))
    normalised = _normalise(keys, file)
    stored_names = {
        _hugging_face_name(name, str(path)): name for name in file.tensors if name != _ROPE_FREQUENCIES
    }
    expected = normalised.shapes
    check_layout(
        expected, {name: file.tensors[stored].shape for name, stored in stored_names.items()}, str(path)
    )
    tokenizer = build_tokenizer_files(file.metadata, str(path))
    return GgufCheckpoint(
        model_type=normalised.model_type,
        config=normalised.config,
        ropes={ONE_ROPE: _with_divisors(normalised.ropes[ONE_ROPE], file)},
        facts=normalised.facts,
        generation=_generation(keys, vocab_size=normalised.facts.vocab_size),
        tokenizer=tokenizer,
        file=file,
        stored_names={name: stored_names[name] for name in expected},
        permuted_heads=_permuted_heads(normalised, expected),
    )


def unpermute_rotary_rows(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's permutation of q and k rows: float32 [num_heads * head_dim, ...], same out.

    GGUF interleaves the two halves of every Llama head for adjacent-pair rotation; transformers and
    EasyDeL rotate halves. Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _normalise(keys: ConfigKeys, file: GgufFile) -> NormalisedConfig:
    architecture = keys.string("general.architecture")
    if architecture not in ARCHITECTURES:
        raise keys.refusal("general.architecture", f"vinfer serves {', '.join(ARCHITECTURES)}")
    if keys.string("general.type", "model") != "model":
        raise keys.refusal("general.type", "only whole models are served, no adapters and no projectors")
    if keys.integer("split.count", 1, minimum=0) > 1:
        raise keys.refusal(
            "split.count", "split files are not served: merge them with llama-gguf-split --merge"
        )
    prefix = f"{architecture}."
    model = ConfigKeys(
        {key.removeprefix(prefix): value for key, value in keys.values.items() if key.startswith(prefix)},
        f"{keys.where}: {architecture}",
    )
    _refuse_unserved(model)
    hidden_size, num_heads = model.integer("embedding_length"), model.integer("attention.head_count")
    config: dict[str, object] = {
        "model_type": architecture,
        "vocab_size": file.tensors["token_embd.weight"].shape[0]
        if "token_embd.weight" in file.tensors
        else 1,
        "hidden_size": hidden_size,
        "intermediate_size": model.integer("feed_forward_length"),
        "num_hidden_layers": model.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": model.integer("attention.head_count_kv", num_heads),
        "head_dim": model.integer("attention.key_length", max(hidden_size // num_heads, 1)),
        "max_position_embeddings": model.integer("context_length"),
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon"),
        # llama.cpp leaves the head out where it is tied.
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope_parameters(model),
    }
    if architecture != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    normalised = normalise(config, keys.where)
    for key in ("rope.dimension_count", "attention.value_length"):
        if model.integer(key, normalised.facts.key_dim) != normalised.facts.key_dim:
            raise model.refusal(key, f"must equal the head dimension {normalised.facts.key_dim}")
    return normalised


def _refuse_unserved(model: ConfigKeys) -> None:
    for key in ("expert_count", "expert_used_count", "attention.sliding_window"):
        if model.integer(key, 0, minimum=0) > 0:
            raise model.refusal(key, "mixtures of experts and sliding windows are not served yet")
    for key in model.values:
        if key not in GGUF_MODEL_KEYS:
            raise model.refusal(
                key,
                "vinfer does not know this key and cannot tell if it changes the logits: use another file",
            )


def _rope_parameters(model: ConfigKeys) -> dict[str, object]:
    theta = model.number("rope.freq_base", 10_000.0)
    scaling = model.string("rope.scaling.type", "none")
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling != "linear":
        raise model.refusal("rope.scaling.type", "scaling types served: none, linear")
    return {"rope_type": "linear", "rope_theta": theta, "factor": model.number("rope.scaling.factor")}


def _with_divisors(rope: RopeFacts, file: GgufFile) -> RopeFacts:
    """Apply `rope_freqs.weight`, in which llama.cpp stores llama3 scaling ready computed."""
    if _ROPE_FREQUENCIES not in file.tensors:
        return rope
    divisors = file.read(_ROPE_FREQUENCIES)
    if divisors.shape != (rope.rotary_dim // 2,) or not (
        np.isfinite(divisors).all() and (divisors > 0).all()
    ):
        raise CheckpointError(
            f"{file.path}: {_ROPE_FREQUENCIES} must hold {rope.rotary_dim // 2} finite positive numbers, "
            f"but has shape {list(divisors.shape)}: the file is corrupt"
        )
    return dataclasses.replace(rope, frequency_divisors=tuple(divisors.tolist()))


def _hugging_face_name(stored: str, where: str) -> str:
    parts = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?(\w+)\.(weight|bias)", stored)
    if parts is not None:
        layer, name, kind = parts.groups()
        if layer is None and name in _TOP_NAMES:
            return f"{_TOP_NAMES[name]}.{kind}"
        if layer is not None and name in _LAYER_NAMES:
            return f"model.layers.{int(layer)}.{_LAYER_NAMES[name]}.{kind}"
    raise CheckpointError(
        f"{where} has a tensor {stored!r} that vinfer has no place for: it is a variant not served"
    )


def _permuted_heads(normalised: NormalisedConfig, expected: Mapping[str, Shape]) -> dict[str, int]:
    if normalised.model_type != "llama":
        return {}
    config = ConfigKeys(normalised.config, "config")
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return {
        name: config.integer(heads[name.split(".")[-2]]) for name in expected if name.split(".")[-2] in heads
    }


def _generation(keys: ConfigKeys, vocab_size: int) -> GenerationFacts:
    ends = [keys.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return read_generation_facts(
        {},
        {
            "eos_token_id": [id_ for id_ in ends if id_ is not None],
            "bos_token_id": keys.values.get("tokenizer.ggml.bos_token_id"),
            "pad_token_id": keys.values.get("tokenizer.ggml.padding_token_id"),
        },
        tokenizer_eos_id=None,
        vocab_size=vocab_size,
        where=keys.where,
    )

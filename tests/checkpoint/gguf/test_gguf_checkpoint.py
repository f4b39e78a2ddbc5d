"""GGUF files in Hugging Face terms: written like llama.cpp, read back like transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import open_written, permute, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from vinfer.checkpoint.checkpoint import Checkpoint
from vinfer.checkpoint.gguf.names import unpermute_rotary_rows
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.errors import CheckpointError

Tiny = Callable[..., Any]


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_tensors_come_back_in_hugging_face_layout(
    tmp_path: Path, tiny: Tiny, model_type: str, is_tied: bool
) -> None:
    tensors = tiny(model_type, tie_word_embeddings=is_tied).tensors
    checkpoint = open_written(write_gguf(tmp_path / "x.gguf", model_type, tensors))
    assert checkpoint.model_type == model_type
    assert checkpoint.facts.is_tied == is_tied
    assert sorted(checkpoint.tensor_names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensor_shape(name) == tensor.shape
        np.testing.assert_array_equal(checkpoint.read(name), tensor, err_msg=name)


def test_biases_of_a_llama_are_unpermuted_too(tmp_path: Path, tiny: Tiny) -> None:
    tensors = tiny("llama").tensors
    generator = np.random.default_rng(1)
    for name in [name for name in tensors if "self_attn" in name]:
        bias = generator.standard_normal(tensors[name].shape[0], dtype=np.float32)
        tensors[name.replace("weight", "bias")] = bias
    checkpoint = open_written(write_gguf(tmp_path / "x.gguf", "llama", tensors))
    assert checkpoint.config["attention_bias"] is True
    for name in ("model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.k_proj.bias"):
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name])


@given(
    num_heads=st.integers(1, 9),
    half=st.integers(1, 8),
    columns=st.lists(st.integers(1, 3), max_size=1),
    seed=st.integers(0, 99),
)
def test_unpermuting_undoes_llama_cpp(num_heads: int, half: int, columns: list[int], seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((num_heads * half * 2, *columns), dtype=np.float32)
    np.testing.assert_array_equal(unpermute_rotary_rows(permute(weight, num_heads), num_heads), weight)


def test_a_quantised_tensor_is_unpermuted_after_dequantising(tmp_path: Path, tiny: Tiny) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = tiny("llama").tensors
    stored = gguf.quantize(permute(tensors[name], 4), gguf.GGMLQuantizationType.Q8_0)
    expected = unpermute_rotary_rows(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0), 4)
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    writer_path = tmp_path / "x.gguf"
    original = gguf.GGUFWriter.write_header_to_file

    def add_quantised(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.weight", stored, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        original(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_quantised)
        write_gguf(writer_path, "llama", rest)
    read = open_written(writer_path).read(name)
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_allclose(read, tensors[name], atol=0.02)


def test_stored_rope_factors_divide_the_frequencies(tmp_path: Path, tiny: Tiny) -> None:
    factors = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    plain = open_written(write_gguf(tmp_path / "plain.gguf", "llama", tiny("llama").tensors)).ropes["default"]
    scaled = open_written(
        write_gguf(
            tmp_path / "x.gguf", "llama", tiny("llama").tensors, extra_tensors={"rope_freqs.weight": factors}
        )
    ).ropes["default"]
    assert plain.theta == 500000.0
    np.testing.assert_array_equal(scaled.inverse_frequencies(8), plain.inverse_frequencies(8) / factors)


def test_linear_scaling_is_translated(tmp_path: Path, tiny: Tiny) -> None:
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    checkpoint = open_written(write_gguf(tmp_path / "x.gguf", "llama", tiny("llama").tensors, metadata))
    assert checkpoint.ropes["default"] == RopeFacts(
        theta=500000.0, rotary_dim=8, rope_type="linear", factor=4.0
    )


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_only_llama_takes_stored_rope_factors(tmp_path: Path, tiny: Tiny, architecture: str) -> None:
    extra = {"rope_freqs.weight": np.ones(4, np.float32)}
    path = write_gguf(tmp_path / "x.gguf", architecture, tiny(architecture).tensors, extra_tensors=extra)
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' that vinfer does not know"):
        open_written(path)


def test_every_end_token_counts(tmp_path: Path, tiny: Tiny) -> None:
    metadata = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 8}
    generation = open_written(
        write_gguf(tmp_path / "x.gguf", "llama", tiny("llama").tensors, metadata)
    ).generation
    assert generation.eos_token_ids == (7, 8, 257)
    assert (generation.bos_token_id, generation.pad_token_id) == (256, None)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": ...}, "no block_count"),
        ({"llama.block_count": 3}, "lacks 9 of 30 tensors"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.attention.sliding_window": 64}, "sliding_window = 64"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'.*none, linear"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count = 4"),
        ({"llama.attention.value_length": 16}, "attention.value_length = 16"),
        ({"llama.logit_scale": 0.5}, "logit_scale = 0.5: vinfer does not know"),
        ({"llama.feed_forward_length": [48, 48]}, "feed_forward_length"),
        ({"general.type": "adapter"}, "general.type = 'adapter'"),
        ({"split.count": 2}, "split files"),
        ({"tokenizer.ggml.eos_token_id": 260}, "eos_token_id|token id"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, tiny: Tiny, metadata: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny("llama").tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        open_written(path)


def test_another_architecture_is_refused_by_name(tmp_path: Path, tiny: Tiny) -> None:
    path = write_gguf(tmp_path / "x.gguf", "gemma3n", tiny("llama").tensors)
    with pytest.raises(
        CheckpointError,
        match=r"general\.architecture = 'gemma3n': supported: gemma2, gemma3, llama, qwen2, qwen3",
    ):
        open_written(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_sinks.weight", (4,), "'blk.0.attn_sinks.weight'"),
        ("blk.7.attn_q.weight", (32, 32), "does not use, first model.layers.7"),
        ("blk.0.attn_q_norm.weight", (8,), "does not use, first model.layers.0.self_attn.q_norm"),
        ("rope_freqs.weight", (3,), "must hold 4 finite"),
    ],
)
def test_a_tensor_without_a_place_is_refused(
    tmp_path: Path, tiny: Tiny, name: str, shape: tuple[int, ...], message: str
) -> None:
    extra = {name: np.ones(shape, np.float32)}
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny("llama").tensors, extra_tensors=extra)
    with pytest.raises(CheckpointError, match=message):
        open_written(path)


@pytest.mark.compiles
def test_smollm2_answers_with_these_weights(smollm2: Checkpoint, tmp_path: Path) -> None:
    """Check tensors, permutation, rotary table, config and tokenizer together in a float32 forward pass."""
    from tokenizers import Tokenizer

    smollm2.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt_ids = tokenizer.encode(prompt).ids
    answer_ids = tokenizer.encode("The capital of France is Paris.<|im_end|>").ids
    logits = _llama_logits(smollm2, np.array(prompt_ids + answer_ids))
    greedy = logits[len(prompt_ids) - 1 : -1].argmax(axis=-1)
    assert greedy.tolist() == answer_ids


def _llama_logits(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """Compute Llama in NumPy: int [length] -> float32 [length, vocab]."""
    config: dict[str, Any] = checkpoint.config
    heads, kv_heads, head_dim = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    length = len(ids)
    angles = np.outer(
        np.arange(length, dtype=np.float32), checkpoint.ropes["default"].inverse_frequencies(length)
    )
    cos, sin = (np.concatenate([f(angles)] * 2, axis=-1)[:, None] for f in (np.cos, np.sin))
    mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * checkpoint.read(name)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ checkpoint.read(f"{name}.weight").T

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    embedding = checkpoint.read("model.embed_tokens.weight")
    x = embedding[ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        h = norm(x, f"{prefix}.input_layernorm.weight")
        q = rotate(linear(h, f"{prefix}.self_attn.q_proj").reshape(length, heads, head_dim))
        k = rotate(linear(h, f"{prefix}.self_attn.k_proj").reshape(length, kv_heads, head_dim))
        v = linear(h, f"{prefix}.self_attn.v_proj").reshape(length, kv_heads, head_dim)
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(np.float32(head_dim)) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        x = x + linear(mixed, f"{prefix}.self_attn.o_proj")
        h = norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate = linear(h, f"{prefix}.mlp.gate_proj")
        gate = gate / (1 + np.exp(-gate)) * linear(h, f"{prefix}.mlp.up_proj")
        x = x + linear(gate, f"{prefix}.mlp.down_proj")
    return norm(x, "model.norm.weight") @ embedding.T

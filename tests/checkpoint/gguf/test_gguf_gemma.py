"""Gemma from GGUF: tiny files like those of llama.cpp's converter, and the real model if installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma_gguf import gemma_gguf
from gguf_files import open_written, write_gguf
from tokenizers import Tokenizer

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.checkpoint import open_gguf_checkpoint
from vinfer.checkpoint.gguf.config import hugging_face_config
from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

CONTROL = ["<pad>", "<eos>", "<bos>", "<end_of_turn>"]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))],
    "tokenizer.ggml.scores": [-1000.0] * 4 + [0.0] * 256,
    "tokenizer.ggml.token_type": [3] * 4 + [6] * 256,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_space_prefix": False,
}


def _tensors(model_type: str, *, is_tied: bool = True) -> dict[str, np.ndarray]:
    """Every tensor of the model in transformers' names; norms near 0, as in transformers."""
    config = {
        "model_type": model_type,
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": is_tied,
    }
    generator = np.random.default_rng(3)
    return {
        name: generator.standard_normal(shape, dtype=np.float32)
        for name, shape in normalise(config).shapes.items()
    }


def _write(path: Path, architecture: str, tensors: dict[str, np.ndarray], **metadata: Any) -> Path:
    stated = {f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return write_gguf(path, architecture, tensors, TOKENIZER | stated)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_tensors_come_back_in_hugging_face_layout(tmp_path: Path, architecture: str) -> None:
    model_type = {"gemma2": "gemma2", "gemma3": "gemma3_text"}[architecture]
    tensors = _tensors(model_type)
    checkpoint = open_written(
        _write(tmp_path / "x.gguf", architecture, tensors, attention__sliding_window=16)
    )
    assert checkpoint.model_type == model_type
    assert checkpoint.facts.windows == ((16, None) if architecture == "gemma2" else (16, 16))
    assert sorted(checkpoint.tensor_names()) == sorted(tensors)
    for name, tensor in tensors.items():
        # 1 + weight is stored, rounded to float32
        rounding = 1e-6 if name.endswith("norm.weight") else 0
        np.testing.assert_allclose(checkpoint.read(name), tensor, rtol=0, atol=rounding, err_msg=name)


def test_gemma3_with_a_head_of_its_own(tmp_path: Path) -> None:
    tensors = _tensors("gemma3_text", is_tied=False)
    checkpoint = open_written(_write(tmp_path / "x.gguf", "gemma3", tensors))
    assert not checkpoint.facts.is_tied
    np.testing.assert_array_equal(checkpoint.read("lm_head.weight"), tensors["lm_head.weight"])


def test_gemma_has_two_rotary_tables_and_its_tokenizer(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.gguf", "gemma3", _tensors("gemma3_text"), attention__sliding_window=16)
    checkpoint = open_written(path)
    assert {kind: rope.theta for kind, rope in checkpoint.ropes.items()} == {
        "full_attention": 500000.0,
        "sliding_attention": 10000.0,
    }
    checkpoint.write_tokenizer(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("<end_of_turn>A").ids == [
        2,
        3,
        4 + 65,
    ]


def test_the_end_of_a_turn_ends_an_answer_though_the_file_does_not_say_so(tmp_path: Path) -> None:
    checkpoint = open_written(_write(tmp_path / "x.gguf", "gemma3", _tensors("gemma3_text")))
    assert checkpoint.generation.eos_token_ids == (1, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blk.0.attn_q.bias"], "does not use, first model.layers.0.self_attn.q_proj.bias"),
        (["rope_freqs.weight"], "'rope_freqs.weight' that vinfer does not know"),
        (["mm.input_projection.weight"], "'mm.input_projection.weight' that vinfer does not know"),
    ],
)
def test_a_tensor_without_a_place_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    extra = {name: np.ones(32, np.float32) for name in names}
    path = write_gguf(tmp_path / "x.gguf", "gemma3", _tensors("gemma3_text"), TOKENIZER, extra)
    with pytest.raises(CheckpointError, match=message):
        open_written(path)


@pytest.mark.torch
def test_gemma_3_270m_goes_on_as_it_should_in_transformers(tmp_path: Path) -> None:
    """Check config, tensors and tokenizer together, also beyond the window."""
    checkpoint = open_gguf_checkpoint(gemma_gguf())
    config = hugging_face_config(
        ConfigKeys(checkpoint.file.metadata, "gemma"),
        {name: tensor.shape for name, tensor in checkpoint.file.tensors.items()},
    )
    import torch
    import transformers

    model = transformers.Gemma3ForCausalLM(transformers.AutoConfig.for_model(**config)).eval()
    weights = {name: torch.from_numpy(np.array(checkpoint.read(name))) for name in checkpoint.tensor_names()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    checkpoint.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for prompt, answer in (
        ("1, 2, 3, 4, 5,", " 6, 7, 8, 9, 10,"),
        ("Once upon a time, there was a little", " girl named Lily."),
        ("The capital of France is", " the capital of the country of France."),
    ):
        ids = tokenizer.encode(prompt).ids
        answer_ids = tokenizer.encode(answer, add_special_tokens=False).ids
        with torch.inference_mode():
            logits = model(torch.tensor([ids + answer_ids])).logits[0]
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == answer_ids, prompt
    ids = tokenizer.encode((Path(__file__).parents[3] / "LICENSE").read_text()).ids[:1200]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert losses[600:].mean() < 3

"""GPT-2 and GPT-NeoX: one fact, one rule, one test; also how old files differ from new ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 128,
    "vocab_size": 304,
}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": 304,
}
Directory = Callable[[Callable[[dict[str, Any]], dict[str, Any]]], Path]


def test_gpt2_has_the_defaults_of_its_config_class() -> None:
    facts = normalise({"model_type": "gpt2"}).facts
    assert (facts.hidden_size, facts.num_layers, facts.num_attention_heads) == (768, 12, 12)
    assert (facts.num_positions, facts.vocab_size, facts.is_tied) == (1024, 50257, True)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({}, "n_inner", 256),
        ({"n_inner": None}, "n_inner", 256),
        ({"n_inner": 96}, "n_inner", 96),
        ({}, "activation_function", "gelu_new"),
        ({"activation_function": "gelu"}, "activation_function", "gelu"),
        ({"activation_function": "gelu_pytorch_tanh"}, "activation_function", "gelu_new"),
        ({}, "layer_norm_epsilon", 1e-5),
        ({"scale_attn_weights": False}, "scale_attn_weights", False),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx", True),
        # EasyDeL's modules apply dropout in inference too.
        ({"resid_pdrop": 0.1}, "resid_pdrop", 0.0),
        ({"embd_pdrop": 0.1}, "embd_pdrop", 0.0),
    ],
)
def test_each_fact_of_gpt2_has_its_rule(changes: dict[str, Any], key: str, value: object) -> None:
    assert normalise(GPT2 | changes).config[key] == value


def test_gpt2_has_its_sizes_under_the_usual_names_too() -> None:
    """Twelve heads would also fit the tensors, with different logits."""
    usual = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
    renamed = {name: GPT2[ours] for name, ours in usual.items()}
    rest = {key: value for key, value in GPT2.items() if key not in usual.values()}
    assert normalise(rest | renamed) == normalise(GPT2)
    assert normalise(GPT2 | renamed) == normalise(GPT2)


def test_gpt2_learns_its_positions() -> None:
    normalised = normalise(GPT2)
    assert normalised.ropes == {}
    assert normalised.shapes["transformer.wpe.weight"] == (128, 64)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({}, "hidden_act", "gelu"),
        ({"hidden_act": "gelu_fast"}, "hidden_act", "gelu_new"),
        ({}, "use_parallel_residual", True),
        ({"use_parallel_residual": False}, "use_parallel_residual", False),
        ({}, "attention_bias", True),
        ({"attention_bias": False}, "attention_bias", False),
        ({"hidden_dropout": 0.1}, "hidden_dropout", 0.0),
        ({}, "layer_norm_eps", 1e-5),
    ],
)
def test_each_fact_of_gpt_neox_has_its_rule(changes: dict[str, Any], key: str, value: object) -> None:
    assert normalise(NEOX | changes).config[key] == value


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, RopeFacts(theta=1e4, rotary_dim=4)),
        ({"rotary_pct": 1.0, "rotary_emb_base": 5e4}, RopeFacts(theta=5e4, rotary_dim=16)),
        (
            {"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 500, "rope_theta": 500},
            RopeFacts(theta=500, rotary_dim=8),
        ),
        (
            {"rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 0.5, "rope_type": "default"}},
            RopeFacts(theta=3e4, rotary_dim=8),
        ),
    ],
)
def test_gpt_neox_has_names_of_its_own_for_rotation(changes: dict[str, Any], rope: RopeFacts) -> None:
    assert normalise(NEOX | changes).ropes == {"default": rope}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2 | {"n_ctx": 64}, "n_ctx = 64: contradicts n_positions = 128"),
        (GPT2 | {"num_attention_heads": 8}, "num_attention_heads = 8: n_head is 4: correct one of them"),
        (GPT2 | {"n_head": 5}, "n_head = 5: must divide n_embd"),
        (GPT2 | {"activation_function": "tanh"}, "activation_function = 'tanh'"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention = True: only False"),
        (GPT2 | {"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2LMHeadModel"),
        (NEOX | {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        (NEOX | {"head_dim": 32}, "head_dim = 32"),
        (NEOX | {"rope_theta": 5e4}, "rope_theta = 50000.0: .* rename it to rotary_emb_base"),
        (NEOX | {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: .* rename it to rotary_pct"),
        (NEOX | {"rotary_emb_base": 500, "rope_theta": 400}, "rotary_emb_base = 500: contradicts rope_theta"),
        (
            NEOX | {"rotary_pct": 0.5, "partial_rotary_factor": 0.25},
            "rotary_pct = 0.5: contradicts partial_rotary_factor = 0.25",
        ),
    ],
)
def test_what_contradicts_or_is_not_served_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(config)


@pytest.fixture
def directory(tmp_path: Path, hf_directory: Callable[..., Path]) -> Directory:
    """Return a function that writes a tiny GPT-2 with changed tensors."""

    def make(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        from safetensors.numpy import save_file

        directory = tmp_path / "gpt2"
        shutil.copytree(hf_directory(), directory, dirs_exist_ok=True)
        (directory / "config.json").write_text(json.dumps(GPT2))
        draw = np.random.default_rng(0)
        tensors = {
            name: draw.normal(size=shape).astype(np.float32) for name, shape in normalise(GPT2).shapes.items()
        }
        save_file(change(tensors), directory / "model.safetensors")
        return directory

    return make


def test_files_of_the_bare_decoder_are_read(directory: Directory) -> None:
    """OpenAI's files have no prefix, but the causal mask of every layer."""

    def as_openai(tensors: dict[str, Any]) -> dict[str, Any]:
        mask = {f"h.{layer}.attn.bias": np.ones((1, 1, 128, 128), np.float32) for layer in range(2)}
        return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | mask

    expected = open_checkpoint(resolve_source(str(directory(dict))))
    names = sorted(expected.tensor_names())
    values = {name: expected.read(name) for name in names}
    checkpoint = open_checkpoint(resolve_source(str(directory(as_openai))))
    assert sorted(checkpoint.tensor_names()) == names
    for name in names:
        np.testing.assert_array_equal(checkpoint.read(name), values[name])


def test_a_trained_head_in_a_tied_gpt2_is_refused(directory: Directory) -> None:
    def with_head(tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}

    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from transformer.wte.weight"):
        open_checkpoint(resolve_source(str(directory(with_head))))

"""Published models are supported: their config.json passes, and its facts match what the authors state."""

from __future__ import annotations

import math
from typing import Any

import pytest
from published_configs import CONFIGS, published

from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

# As counted by the hub; a tied head counts once.
NUM_PARAMETERS = {
    "Llama-2-7b": 6_738_415_616,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "SmolLM2-135M-Instruct": 134_515_008,
    "Qwen2.5-7B-Instruct with yarn": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Qwen3-0.6B": 596_049_920,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen3-30B-A3B": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gemma-2-2b-it": 2_614_341_888,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "gemma-3-4b-it": 4_300_079_472,
    "gemma-3-27b-it": 27_432_406_640,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Phi-4-mini-instruct": 3_836_021_760,
    "OLMo-2-1124-7B": 7_298_617_344,
    "Olmo-3-7B-Instruct": 7_298_011_136,
    "SmolLM3-3B": 3_075_098_624,
    "c4ai-command-r7b-12-2024": 8_028_033_024,
    "stablelm-2-1_6b": 1_644_515_328,
    "GLM-4-9B-0414": 9_400_279_040,
    "pythia-160m": 162_322_944,
    "gpt2": 124_439_808,
    "Llama-3.1-8B": 8_030_261_248,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "vicuna-7b-v1.5": 6_738_415_616,
    "deepseek-coder-6.7b-instruct": 6_740_512_768,
    "Qwen2.5-7B-Instruct-1M": 7_615_616_512,
    "Qwen3-Coder-30B-A3B-Instruct": 30_532_122_624,
    "Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "gemma-2-9b-it": 9_241_705_984,
    "Phi-3-mini-128k-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "stablelm-zephyr-3b": 2_795_443_200,
    "gpt-neox-20b": 20_554_567_680,
    "dolly-v2-3b": 2_775_086_080,
    "gpt2-medium": 354_823_168,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "llava-1.5-7b-hf": 7_063_427_072,
    "vip-llava-7b-hf": 7_080_214_528,
    "Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
}

# (rope type, theta, rotated dimensions per head) of each table.
ROPES = {
    "Llama-3.2-1B-Instruct": {"default": ("llama3", 5e5, 64)},
    "Qwen2.5-7B-Instruct with yarn": {"default": ("yarn", 1e6, 128)},
    "gpt-oss-20b": {"default": ("yarn", 1.5e5, 64)},
    "gemma-3-1b-it": {
        "full_attention": ("default", 1e6, 256),
        "sliding_attention": ("default", 1e4, 256),
    },
    "gemma-3-4b-it": {
        "full_attention": ("linear", 1e6, 256),
        "sliding_attention": ("default", 1e4, 256),
    },
    "deepseek-coder-6.7b-instruct": {"default": ("linear", 1e5, 128)},
    "gemma-2-9b-it": {"default": ("default", 1e4, 256)},
    "Phi-3-mini-128k-instruct": {"default": ("longrope", 1e4, 96)},
    "phi-4": {"default": ("default", 2.5e5, 128)},
    "stablelm-zephyr-3b": {"default": ("default", 1e4, 20)},
    "gpt-neox-20b": {"default": ("default", 1e4, 24)},
    "Phi-4-mini-instruct": {"default": ("longrope", 1e4, 96)},
    "Olmo-3-7B-Instruct": {
        "full_attention": ("yarn", 5e5, 128),
        "sliding_attention": ("default", 5e5, 128),
    },
    "stablelm-2-1_6b": {"default": ("default", 1e4, 16)},
    "GLM-4-9B-0414": {"default": ("default", 1e4, 64)},
    "pythia-160m": {"default": ("default", 1e4, 16)},
    "gpt2": {},
    "Qwen2-VL-2B-Instruct": {"default": ("default", 1e6, 128)},
}

# Windows of the first layers; the others repeat them.
WINDOWS = {
    "Mistral-7B-v0.1": (4096, 4096),
    "Mistral-7B-Instruct-v0.3": (None, None),
    "DeepSeek-R1-Distill-Qwen-1.5B": (None, None),
    "gpt-oss-20b": (128, None, 128, None),
    "gemma-2-2b-it": (4096, None, 4096, None),
    "gemma-3-1b-it": (512, 512, 512, 512, 512, None, 512),
    "gemma-3-4b-it": (1024, 1024, 1024, 1024, 1024, None, 1024),
    "Mistral-Nemo-Instruct-2407": (None, None),
    "gemma-2-9b-it": (4096, None, 4096, None),
    "Phi-3-mini-4k-instruct": (2047, 2047),
    "phi-4": (None, None),
    "Olmo-3-7B-Instruct": (4096, 4096, 4096, None),
    "SmolLM3-3B": (None, None, None, None),
    "c4ai-command-r7b-12-2024": (4096, 4096, 4096, None),
}


def test_every_family_has_a_published_model() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_tensors_hold_as_many_parameters_as_published(name: str) -> None:
    shapes = normalise(published(name)).shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ROPES)
def test_its_rotary_tables(name: str) -> None:
    found = normalise(published(name)).ropes
    assert {table: (rope.rope_type, rope.theta, rope.rotary_dim) for table, rope in found.items()} == ROPES[
        name
    ]


@pytest.mark.parametrize("name", WINDOWS)
def test_its_windows(name: str) -> None:
    windows = normalise(published(name)).facts.windows
    assert windows[: len(WINDOWS[name])] == WINDOWS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_is_tied_where_the_model_has_none(name: str) -> None:
    tied = {
        "Llama-3.2-1B-Instruct",
        "SmolLM2-135M-Instruct",
        "Qwen3-0.6B",
        "gemma-2-2b-it",
        "gemma-3-1b-it",
        "gemma-3-270m",
        "gemma-3-4b-it",
        "gemma-3-27b-it",
        "Phi-4-mini-instruct",
        "SmolLM3-3B",
        "Qwen2-VL-2B-Instruct",
        "c4ai-command-r7b-12-2024",
        "gpt2",
        "gemma-2-9b-it",
        "gpt2-medium",
        "gpt2-xl",
        "distilgpt2",
    }
    assert normalise(published(name)).facts.is_tied == (name in tied)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Qwen3-Coder-30B-A3B-Instruct", {"use_qk_norm": False}, "use_qk_norm = False: only True"),
        ("Qwen3-Coder-30B-A3B-Instruct", {"qkv_bias": True}, "qkv_bias = True: only False"),
        (
            "Qwen3-Coder-30B-A3B-Instruct",
            {"shared_expert_intermediate_size": 512},
            "shared_expert_intermediate_size = 512: only 0",
        ),
        ("stablelm-zephyr-3b", {"num_heads": 16}, "num_heads = 16: only 32"),
        ("stablelm-zephyr-3b", {"rope_pct": 0.5}, "rope_pct = 0.5: only 0.25"),
        ("stablelm-zephyr-3b", {"norm_eps": 1e-6}, "norm_eps = 1e-06: only 1e-05"),
        ("stablelm-zephyr-3b", {"rotary_scaling_factor": 4.0}, "rotary_scaling_factor = 4.0: only 1.0"),
    ],
)
def test_keys_that_repeat_what_transformers_computes_are_refused_when_they_do_not(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(published(name) | changes)


def test_a_key_that_servers_read_differently_is_refused_with_the_way_out() -> None:
    """DeepSeek-R1-0528-Qwen3-8B: transformers uses yarn's factor in full, other servers 0.878 of it."""
    yarn = {
        "attn_factor": 0.8782488562869419,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_type": "yarn",
    }
    with pytest.raises(CheckpointError, match=r"attn_factor = 0\.878.*set attention_factor"):
        normalise(published("Qwen3-0.6B") | {"rope_scaling": yarn})


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_the_bare_decoder_of_each_has_no_head_of_its_own(name: str) -> None:
    config = published(name)
    family = FAMILIES[config["model_type"]]
    if family.headless is None:
        with pytest.raises(CheckpointError, match="architectures"):
            normalise(
                {
                    **config,
                    "architectures": [family.architecture.replace("ForConditionalGeneration", "Model")],
                }
            )
        return
    whole = normalise({**config, "architectures": [family.architecture], "tie_word_embeddings": True})
    bare = normalise({**config, "architectures": [family.headless], "tie_word_embeddings": False})
    assert whole.facts.has_head
    assert not bare.facts.has_head
    assert bare.facts.is_tied
    assert dict(bare.shapes) == dict(whole.shapes)
    assert bare.names.head not in bare.shapes
    # Files of a bare decoder have no prefix.
    assert bare.names.embedding.startswith(bare.names.optional_prefix)
    assert len(bare.names.optional_prefix) > 1

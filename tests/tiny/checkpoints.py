"""Tiny random checkpoints saved by transformers in its own format, and the reference models.

Every tensor is random, including norms and biases, and large enough that attention is far from uniform. A
wrong rotary table, mask or bias then shows in the logits. Files are written once into `.build/` of the
checkout and never again, because a bundle's key contains their times. Needs torch and transformers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tiny.families import FAMILY_MODELS
from tiny.models import TinyModel
from tiny.vision_models import TRAINED_MODELS, VISION_MODELS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vinfer.parity.reference import correct_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CACHE = Path(__file__).parents[2] / ".build"

BOS, EOS = "<s>", "</s>"
NUM_TOKENS = 258
"""Number of ids in the tokenizer."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

# Standard deviation of attention scores; 0 means uniform attention; above 4, only one position matters.
SCORE_DEVIATION = 2.5
# The same for a router's scores, so that the choice of experts is clear.
ROUTER_DEVIATION = 4.0


MODELS: dict[str, TinyModel] = {
    "llama": TinyModel(
        "Llama",
        1,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
    # Wavelengths of a head of 16 lie below, between and above 64 / 4 and 64 / 1.
    "llama3-rope": TinyModel(
        "Llama",
        2,
        {
            "num_hidden_layers": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-two-kv-heads": TinyModel("Llama", 3, {"num_key_value_heads": 2, "num_hidden_layers": 2}),
    # The heads of SmolLM2-135M.
    "llama-nine-heads": TinyModel(
        "Llama",
        4,
        {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 1},
    ),
    "qwen2": TinyModel(
        "Qwen2",
        5,
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    # A head is wider than hidden_size / num_attention_heads.
    "qwen3": TinyModel(
        "Qwen3",
        6,
        {
            "num_hidden_layers": 2,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    # The windows, layers and positions of Gemma 3 270M.
    "gemma3-long": dataclasses.replace(
        FAMILY_MODELS["gemma3"],
        config={
            **FAMILY_MODELS["gemma3"].config,
            "max_position_embeddings": 32_768,
            "num_hidden_layers": 6,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "sliding_window": 512,
        },
    ),
    **FAMILY_MODELS,
    **VISION_MODELS,
    **TRAINED_MODELS,
}


def checkpoint_directory(name: str) -> Path:
    """Return where a checkpoint of `MODELS` is or will be."""
    sources = (Path(__file__), *([Path(__file__).with_name("colours.py")] if MODELS[name].is_trained else []))
    identity = repr(MODELS[name]) + "".join(source.read_text() for source in sources)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return CACHE / "test-checkpoints" / f"{name}-{digest}"


def checkpoint(name: str) -> Path:
    """Return the directory of a checkpoint of `MODELS`, written on first use."""
    directory = checkpoint_directory(name)
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory.parent))
        try:
            write_tokenizer(scratch, MODELS[name].special_tokens)
            model = trained_model(name, scratch) if MODELS[name].is_trained else random_model(name)
            model.save_pretrained(scratch)
            for file, text in MODELS[name].files.items():
                (scratch / file).write_text(text)
            try:
                scratch.rename(directory)
            except OSError:
                # Another process was faster; what it wrote is the same.
                if not directory.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return directory


def random_model(name: str) -> PreTrainedModel:
    """Build the model of `MODELS` with every parameter drawn from its seed; float32, eval mode."""
    import torch

    spec = MODELS[name]
    model = _new_model(spec).eval()
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(_draw(path, parameter, spec, generator))
    return model


def trained_model(name: str, directory: Path) -> PreTrainedModel:
    """Build and train the model of `MODELS`; `directory` has its tokenizer."""
    import torch
    from tiny.colours import train_on_colours

    torch.manual_seed(MODELS[name].seed)
    model = _new_model(MODELS[name])
    train_on_colours(model, directory)
    return model


def _new_model(spec: TinyModel) -> PreTrainedModel:
    import transformers

    config = getattr(transformers, spec.config_class or f"{spec.family}Config")(**spec.arguments())
    model_class = getattr(transformers, spec.model_class or f"{spec.family}ForCausalLM")
    model: PreTrainedModel = model_class(config)
    return model


def reference(name: str, dtype: str = "float32") -> PreTrainedModel:
    """Load a checkpoint as a user of transformers would; eager attention, eval mode."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if "vision_config" in MODELS[name].config else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(
        checkpoint(name), dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    )
    correct_model(model)
    return model.eval()


def write_tokenizer(directory: Path, special_tokens: tuple[str, ...] = ()) -> None:
    """Write a byte-level tokenizer without merges: ids 0..255 are bytes, then BOS, EOS and more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS)])
    assert tokenizer.get_vocab_size() == NUM_TOKENS
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {"bos_token": BOS, "eos_token": EOS, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))


def _draw(path: str, parameter: torch.Tensor, spec: TinyModel, generator: torch.Generator) -> torch.Tensor:
    """Draw one parameter so that activations stay near 1 and scores near SCORE_DEVIATION."""
    import torch

    noise = torch.randn(parameter.shape, generator=generator)
    layer = path.split(".")[-2]
    if path.endswith(("q_norm.weight", "k_norm.weight")) or "_layernorm.norms." in path:
        return SCORE_DEVIATION**0.5 * (1 + 0.2 * noise) - (1 - spec.norm_mean)
    if parameter.ndim == 1:
        is_norm = "norm" in layer or layer.startswith("ln_")
        if is_norm and path.endswith("weight"):
            # Towers have plain layer norms in every family.
            return (1.0 if "vision_tower" in path else spec.norm_mean) + 0.2 * noise
        return spec.bias_deviation * noise
    if layer in ("embed_tokens", "embed_in", "wte"):
        return noise * spec.embedding_deviation
    if layer in ("lm_head", "embed_out", "wpe"):
        return noise * 0.3
    # GPT-2 stores [in, out]; gpt-oss stores [expert, in, out].
    fan_in = parameter.shape[-2 if spec.stores_inputs_first else -1]
    if parameter.ndim == 5:
        fan_in = parameter[0].numel()
    if layer in ("q_proj", "k_proj", "qkv", "qkv_proj", "query_key_value", "c_attn"):
        return noise * (SCORE_DEVIATION / fan_in) ** 0.5
    if layer in ("gate", "router") and "mlp" in path:
        return noise * (ROUTER_DEVIATION / parameter.shape[-1]) ** 0.5
    return noise * (1.5 / fan_in) ** 0.5

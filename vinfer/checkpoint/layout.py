"""Which tensors a checkpoint of a served family must hold, in Hugging Face names and shapes.

Runs in the build half, on any thread. Catches truncated, foreign and mislabelled checkpoints before
minutes of building. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.errors import CheckpointError

Shape = tuple[int, ...]


def expected_shapes(model_type: str, config: Mapping[str, object]) -> dict[str, Shape]:
    """List every tensor of the model; `config` is a normalised one. A tied head is not listed."""
    keys = ConfigKeys(config, "config")
    vocab, hidden, mlp, heads, kv_heads, head_dim = (
        keys.integer(key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    )
    attention_bias = keys.boolean("attention_bias")
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, rows, columns, has_bias in (
        ("self_attn.q_proj", heads * head_dim, hidden, attention_bias),
        ("self_attn.k_proj", kv_heads * head_dim, hidden, attention_bias),
        ("self_attn.v_proj", kv_heads * head_dim, hidden, attention_bias),
        ("self_attn.o_proj", hidden, heads * head_dim, attention_bias and model_type != "qwen2"),
        ("mlp.gate_proj", mlp, hidden, keys.boolean("mlp_bias", False)),
        ("mlp.up_proj", mlp, hidden, keys.boolean("mlp_bias", False)),
        ("mlp.down_proj", hidden, mlp, keys.boolean("mlp_bias", False)),
    ):
        layer[f"{name}.weight"] = (rows, columns)
        if has_bias:
            layer[f"{name}.bias"] = (rows,)
    if model_type == "qwen3":
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(keys.integer("num_hidden_layers")):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not keys.boolean("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def check_layout(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Compare the tensors of a checkpoint with the expected ones.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is none the model would read.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}: "
            "the download is incomplete or config.json belongs to another model; fetch the checkpoint again"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(found[name])}; its config asks for {list(shape)}: "
                "config and weights belong to different models"
            )
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise CheckpointError(
            f"{where} has {len(surplus)} tensors that its config gives no use for, first {surplus[0]}: "
            "the model is a variant that vinfer does not serve"
        )

"""GPT-2 and GPT-NeoX: layer norms, biases everywhere, one fused projection for queries, keys and values.

Source: transformers 5.5, `models/{gpt2,gpt_neox}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.reading import (
    GELU,
    layers_shapes,
    read_activation,
    read_facts,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    size_keys,
)
from vinfer.checkpoint.family import ONE_ROPE, Family, ModelFacts, NormalisedConfig, TensorNames
from vinfer.checkpoint.layout import HEAD, Shape, linear_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope

GPT2_NAMES = TensorNames(
    embedding="transformer.wte.weight",
    head=HEAD,
    # OpenAI's checkpoints were saved from a bare GPT2Model.
    optional_prefix="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias"),
)
NEOX_NAMES = TensorNames(
    embedding="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    buffers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)


def _gpt_neox(keys: ConfigKeys) -> NormalisedConfig:
    heads = read_heads(keys)
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    for key, size, told in (
        ("head_dim", heads.num_queries, hidden),
        ("num_key_value_heads", heads.num_key_value_heads, heads.num_attention_heads),
    ):
        if size != told:
            raise keys.refusal(key, "this family derives it: remove the key")
    keys = with_usual_names(keys)
    facts = read_facts(keys, heads, default_num_positions=2048)
    has_bias = keys.boolean("attention_bias", True)
    config: dict[str, object] = {
        **size_keys(facts, inner=inner),
        "hidden_act": read_activation(keys, GELU, default="gelu"),
        "layer_norm_eps": keys.number("layer_norm_eps", 1e-5),
        "use_parallel_residual": keys.boolean("use_parallel_residual", True),
        "attention_bias": has_bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    layer = {
        **linear_shapes("attention.query_key_value", 3 * hidden, hidden, has_bias=has_bias),
        **linear_shapes("attention.dense", hidden, hidden, has_bias=has_bias),
        **linear_shapes("mlp.dense_h_to_4h", inner, hidden, has_bias=True),
        **linear_shapes("mlp.dense_4h_to_h", hidden, inner, has_bias=True),
        **norm_shapes(("input_layernorm", "post_attention_layernorm"), hidden, has_bias=True),
    }
    shapes: dict[str, Shape] = {
        NEOX_NAMES.embedding: (facts.vocab_size, hidden),
        **norm_shapes(("gpt_neox.final_layer_norm",), hidden, has_bias=True),
        **layers_shapes("gpt_neox.layers", layer, facts.num_layers),
    }
    if not facts.is_tied:
        shapes[NEOX_NAMES.head] = (facts.vocab_size, hidden)
    return NormalisedConfig(
        model_type="gpt_neox",
        config=config,
        ropes={ONE_ROPE: read_rope(keys, head_dim=heads.head_dim, default_partial_rotary_factor=0.25)},
        facts=facts,
        shapes=shapes,
        names=NEOX_NAMES,
    )


def with_usual_names(keys: ConfigKeys) -> ConfigKeys:
    """Return a GPT-NeoX config with the rotary facts under the names of the other families.

    transformers reads them only under its own names; files from late 4.x versions have both.

    Raises:
        CheckpointError: a fact is stated only under the usual name, or twice and differently.
    """
    usual = {}
    for key, name in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if keys.has(key) and not keys.has(name):
            raise keys.refusal(key, f"transformers ignores it in this family: rename it to {name}")
        if keys.has(key) and keys.values[key] != keys.values[name]:
            raise keys.refusal(name, f"contradicts {key} = {keys.values[key]}: remove one of them")
        if keys.has(name):
            usual[key] = keys.number(name)
    return keys.updated(**usual)


def _gpt2(keys: ConfigKeys) -> NormalisedConfig:
    hidden = _read_either(keys, "n_embd", "hidden_size", 768, maximum=2**20)
    num_heads = _read_either(keys, "n_head", "num_attention_heads", 12, maximum=2**16)
    num_layers = _read_either(keys, "n_layer", "num_hidden_layers", 12, maximum=1024)
    num_positions = _read_either(keys, "n_positions", "max_position_embeddings", 1024, maximum=2**31)
    inner = keys.integer("n_inner", 4 * hidden, maximum=2**22)
    if hidden % num_heads:
        raise keys.refusal("n_head", f"must divide n_embd = {hidden}")
    # Old configs state the number of positions twice; transformers reads n_positions.
    if keys.integer("n_ctx", num_positions) != num_positions:
        raise keys.refusal("n_ctx", f"contradicts n_positions = {num_positions}: correct one of them")
    facts = ModelFacts(
        num_layers=num_layers,
        num_attention_heads=num_heads,
        num_kv_heads=num_heads,
        key_dim=hidden // num_heads,
        value_dim=hidden // num_heads,
        hidden_size=hidden,
        vocab_size=keys.integer("vocab_size", 50257, maximum=2**24),
        num_positions=num_positions,
        is_tied=keys.boolean("tie_word_embeddings", True),
        windows=(None,) * num_layers,
    )
    config: dict[str, object] = {
        "vocab_size": facts.vocab_size,
        "n_positions": num_positions,
        "n_embd": hidden,
        "n_layer": num_layers,
        "n_head": num_heads,
        "n_inner": inner,
        "activation_function": read_activation(keys, GELU, key="activation_function", default="gelu_new"),
        "layer_norm_epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "scale_attn_weights": keys.boolean("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": keys.boolean("scale_attn_by_inverse_layer_idx", False),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    return NormalisedConfig(
        model_type="gpt2",
        config=config,
        ropes={},
        facts=facts,
        shapes=_gpt2_shapes(facts, inner),
        names=GPT2_NAMES,
    )


def _read_either(keys: ConfigKeys, name: str, alias: str, default: int, *, maximum: int) -> int:
    """Read a size of GPT-2, which its config class also knows under the usual name (`attribute_map`)."""
    size = keys.integer(name, keys.integer(alias, default, maximum=maximum), maximum=maximum)
    if keys.has(alias) and keys.values[alias] != size:
        raise keys.refusal(alias, f"{name} is {size}: correct one of them")
    return size


def _gpt2_shapes(facts: ModelFacts, inner: int) -> dict[str, Shape]:
    hidden = facts.hidden_size
    layer: dict[str, Shape] = norm_shapes(("ln_1", "ln_2"), hidden, has_bias=True)
    for name, num_inputs, num_outputs in (
        ("attn.c_attn", hidden, 3 * hidden),
        ("attn.c_proj", hidden, hidden),
        ("mlp.c_fc", hidden, inner),
        ("mlp.c_proj", inner, hidden),
    ):
        # transformers' Conv1D, the only layer stored as [in, out].
        layer |= {f"{name}.weight": (num_inputs, num_outputs), f"{name}.bias": (num_outputs,)}
    shapes: dict[str, Shape] = {
        GPT2_NAMES.embedding: (facts.vocab_size, hidden),
        "transformer.wpe.weight": (facts.num_positions, hidden),
        **norm_shapes(("transformer.ln_f",), hidden, has_bias=True),
        **layers_shapes("transformer.h", layer, facts.num_layers),
    }
    if not facts.is_tied:
        shapes[GPT2_NAMES.head] = (facts.vocab_size, hidden)
    return shapes


FAMILIES = (
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        translate=_gpt2,
        harmless=frozenset(
            {
                "attn_pdrop",
                "embd_pdrop",
                "resid_pdrop",
                # From OpenAI's GPT-1: published files have them, transformers does not read them.
                "n_special",
                "predict_special_tokens",
                # Computes scores in float32 when the model is in lower precision; ours always are.
                "reorder_and_upcast_attn",
                # For GPT2DoubleHeadsModel.
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "summary_type",
                "summary_use_proj",
            }
        ),
    ),
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        translate=_gpt_neox,
        harmless=frozenset(
            {
                "classifier_dropout",
                "hidden_dropout",
                # Dropout under BERT's names: GPT-NeoX-20B has them, transformers does not read them.
                "attention_probs_dropout_prob",
                "hidden_dropout_prob",
            }
        ),
    ),
)

"""Rules that several families share: sizes, heads, activations, windows, and the layout of a decoder.

Runs in the build half, on any thread. Each function reads a few keys and rejects impossible values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.family import ModelFacts
from vinfer.checkpoint.layout import EMBEDDING, HEAD, Shape, Shapes, linear_shapes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def num_queries(self) -> int:
        """Rows of q_proj."""
        return self.num_attention_heads * self.head_dim

    @property
    def num_keys(self) -> int:
        """Rows of k_proj and of v_proj."""
        return self.num_key_value_heads * self.head_dim

    def attention_shapes(
        self, hidden: int, *, has_bias: bool, has_output_bias: bool | None = None
    ) -> dict[str, Shape]:
        """List q, k, v and o of one layer; without `has_output_bias`, o is like the others."""
        if has_output_bias is None:
            has_output_bias = has_bias
        return {
            **linear_shapes("self_attn.q_proj", self.num_queries, hidden, has_bias=has_bias),
            **linear_shapes("self_attn.k_proj", self.num_keys, hidden, has_bias=has_bias),
            **linear_shapes("self_attn.v_proj", self.num_keys, hidden, has_bias=has_bias),
            **linear_shapes("self_attn.o_proj", hidden, self.num_queries, has_bias=has_output_bias),
        }


def read_heads(
    keys: ConfigKeys,
    *,
    default_head_dim: int | None = None,
    default_kv_heads: int | None = None,
    must_state_kv_heads: bool = False,
) -> Heads:
    """Read the three head counts.

    Args:
        default_head_dim: for a family that does not default to hidden_size / num_attention_heads.
        default_kv_heads: for a family that does not default to num_attention_heads.
        must_state_kv_heads: reject a config without it, because the family's own default is surprising.
    """
    hidden_size = read_hidden_size(keys)
    num_heads = keys.integer("num_attention_heads", maximum=2**16)
    if must_state_kv_heads and "num_key_value_heads" not in keys.values:
        raise keys.refusal("num_key_value_heads", "this family requires it: add it to the file")
    num_kv_heads = keys.integer("num_key_value_heads", default_kv_heads or num_heads, maximum=2**16)
    if num_heads % num_kv_heads:
        raise keys.refusal("num_key_value_heads", f"must divide num_attention_heads = {num_heads}")
    if default_head_dim is None and not keys.has("head_dim") and hidden_size % num_heads:
        raise keys.refusal("num_attention_heads", f"must divide hidden_size = {hidden_size}")
    default = default_head_dim or max(hidden_size // num_heads, 1)
    head_dim = keys.integer("head_dim", default, maximum=2**14)
    if head_dim % 2:
        raise keys.refusal("head_dim", f"is {head_dim}, but rotary embedding needs an even number")
    return Heads(num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=head_dim)


def read_hidden_size(keys: ConfigKeys) -> int:
    return keys.integer("hidden_size", maximum=2**20)


def read_intermediate_size(keys: ConfigKeys, key: str = "intermediate_size") -> int:
    return keys.integer(key, maximum=2**22)


def read_num_layers(keys: ConfigKeys) -> int:
    return keys.integer("num_hidden_layers", maximum=1024)


def read_vocab_size(keys: ConfigKeys) -> int:
    return keys.integer("vocab_size", maximum=2**24)


def read_facts(
    keys: ConfigKeys,
    heads: Heads,
    *,
    windows: tuple[int | None, ...] | None = None,
    is_tied: bool = False,
    default_num_positions: int | None = None,
) -> ModelFacts:
    """Return the facts of a decoder whose keys and values are as wide as its heads.

    Args:
        windows: None if no layer has one.
        is_tied: the family's default.
        default_num_positions: for a family that does not require `max_position_embeddings`.
    """
    num_layers = read_num_layers(keys)
    return ModelFacts(
        num_layers=num_layers,
        num_attention_heads=heads.num_attention_heads,
        num_kv_heads=heads.num_key_value_heads,
        key_dim=heads.head_dim,
        value_dim=heads.head_dim,
        hidden_size=read_hidden_size(keys),
        vocab_size=read_vocab_size(keys),
        num_positions=keys.integer("max_position_embeddings", default_num_positions),
        is_tied=keys.boolean("tie_word_embeddings", is_tied),
        windows=(None,) * num_layers if windows is None else windows,
    )


def layers_shapes(prefix: str, layer: Shapes, num_layers: int) -> dict[str, Shape]:
    """List the tensors of equal layers, numbered after `prefix`."""
    return {f"{prefix}.{index}.{name}": shape for index in range(num_layers) for name, shape in layer.items()}


def decoder_shapes(facts: ModelFacts, layer: Shapes) -> dict[str, Shape]:
    """List a whole decoder in the layout of Llama, from the tensors of each layer."""
    return {
        EMBEDDING: (facts.vocab_size, facts.hidden_size),
        **layers_shapes("model.layers", layer, facts.num_layers),
        "model.norm.weight": (facts.hidden_size,),
        **({} if facts.is_tied else {HEAD: (facts.vocab_size, facts.hidden_size)}),
    }


def size_keys(facts: ModelFacts, *, inner: int) -> dict[str, object]:
    """Return the sizes under the names that nearly all of EasyDeL's configs use."""
    return {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "intermediate_size": inner,
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_kv_heads,
        "head_dim": facts.key_dim,
        "max_position_embeddings": facts.num_positions,
    }


def read_activation(
    keys: ConfigKeys, names: Mapping[str, str], *, key: str = "hidden_act", default: str
) -> str:
    """Read an activation function.

    Args:
        names: transformers' supported names for this family -> EasyDeL's name of the same function.
    """
    activation = keys.string(key, default)
    if activation not in names:
        raise keys.refusal(key, f"supported for this family: {', '.join(names)}")
    return names[activation]


SILU = {"silu": "silu", "swish": "silu"}
GELU = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
"""`gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are one function written three ways (activations.py)."""


FULL, SLIDING = "full_attention", "sliding_attention"


def every_nth_is_full(num_layers: int, n: int) -> list[str]:
    """Return the layer types of a decoder whose other layers see a window."""
    return [SLIDING if (layer + 1) % n else FULL for layer in range(num_layers)]


def read_layer_types(keys: ConfigKeys, num_layers: int, default: Sequence[str]) -> tuple[str, ...]:
    """Read `layer_types`: full_attention or sliding_attention for every layer."""
    layer_types = keys.values.get("layer_types")
    if layer_types is None:
        layer_types = list(default)
    kinds = (FULL, SLIDING)
    if not isinstance(layer_types, list) or any(kind not in kinds for kind in layer_types):
        raise keys.refusal("layer_types", f"must be a list of {' and '.join(kinds)}")
    if len(layer_types) != num_layers:
        raise keys.refusal(
            "layer_types", f"has {len(layer_types)} entries for num_hidden_layers = {num_layers}"
        )
    return tuple(layer_types)


def read_windows(
    keys: ConfigKeys, layer_types: Sequence[str], default: int | None = None
) -> tuple[int | None, ...]:
    """Return the window of each layer: `sliding_window` where its type is sliding_attention.

    Transformers lets a token see `sliding_window` positions, including its own (masking_utils.py).

    Args:
        default: for a file without the key. A null key means no window, and then transformers cannot
            compute a sliding layer.
    """
    stated = keys.values.get("sliding_window", default)
    if SLIDING not in layer_types:
        return (None,) * len(layer_types)
    if stated is None:
        raise keys.refusal("sliding_window", "layers of type sliding_attention need a window")
    window = keys.integer("sliding_window", default)
    return tuple(window if kind == SLIDING else None for kind in layer_types)


def refuse_other_than(keys: ConfigKeys, served: Mapping[str, object]) -> None:
    """Reject a switch whose value differs from the one that transformers computes without reading it.

    Raises:
        CheckpointError: one of the keys has another value.
    """
    for key, value in served.items():
        if keys.has(key) and keys.values[key] != value:
            raise keys.refusal(key, f"only {value!r} is supported")

"""Finds the rotary facts in a config.json in the format of transformers 4 or 5.

Runs in the build half, on any thread. The rules are those of transformers 5.5: `modeling_rope_utils.py`
(`RotaryEmbeddingConfigMixin`) and `convert_rope_params_to_dict` of the config classes. Knows no family by
name: differences between families are arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import get_args

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.known_keys import ROPE_KEYS
from vinfer.checkpoint.rope.facts import RopeFacts, RopeType
from vinfer.checkpoint.rope.parameters import read_rope_parameters

_ROPE_TYPES: dict[str, RopeType] = {name: name for name in get_args(RopeType)} | {"su": "longrope"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerRope:
    """What a family's config class in transformers does for one of its layer types.

    Attributes:
        theta: default theta.
        theta_key: config.json's key for it in transformers 4; None if there is none.
        parameters: defaults for a layer type that the file does not mention.
        takes_rope_scaling: whether `rope_scaling` of transformers 4 applies to this layer type.
        head_dim: only if it differs from that of the other layer types.
    """

    theta: float
    theta_key: str | None = None
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
    takes_rope_scaling: bool = False
    head_dim: int | None = None


def read_rope(
    keys: ConfigKeys,
    *,
    head_dim: int,
    default_theta: float = 10_000.0,
    default_partial_rotary_factor: float | None = None,
    default_original_length: int | None = None,
    renamed_types: Mapping[str, RopeType] | None = None,
    family_keys: Set[str] = frozenset(),
) -> RopeFacts:
    """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (transformers 4).

    Where a file has both forms, `rope_scaling` replaces `rope_parameters` as a whole. A theta inside wins
    over one outside. The original length outside wins
    over one inside; without either, it is `max_position_embeddings`. Keys of a rope type other than the
    stated one are ignored. transformers does the same.

    Args:
        head_dim: transformers' `head_dim`; in latent attention, only the rotating dimensions.
        default_partial_rotary_factor: None for a family that always rotates whole heads; any factor but 1
            is then rejected.
        default_original_length: the default of `original_max_position_embeddings` for a config class that
            has it as a field (phi3: 4096); it also wins over a length inside.
        renamed_types: rope types that the config class treats as another (qwen2_vl: mrope for default).
        family_keys: keys inside that change no table and that the caller reads itself (`mrope_section`).

    Raises:
        CheckpointError: an unknown rope type or key, a missing or contradictory fact, a wrong value.
    """
    stated = {place: _object(keys, place) for place in ("rope_scaling", "rope_parameters")}
    place = "rope_scaling" if stated["rope_scaling"] else "rope_parameters"
    rope = ConfigKeys(stated[place], f"{keys.where}: {place}")
    _refuse_unknown(rope, family_keys)
    rope_type = _rope_type(rope, _ROPE_TYPES | dict(renamed_types or {}))
    theta = keys.number("rope_theta", default_theta)
    original_length = default_original_length
    if keys.has("original_max_position_embeddings"):
        original_length = keys.integer("original_max_position_embeddings")
    return read_rope_parameters(
        rope,
        rope_type,
        head_dim=head_dim,
        theta=rope.number("rope_theta", theta),
        partial_rotary_factor=_partial_rotary_factor(keys, rope, rope_type, default_partial_rotary_factor),
        max_length=keys.integer("max_position_embeddings"),
        original_length=original_length,
    )


def read_ropes_by_layer_type(
    keys: ConfigKeys, *, head_dim: int, defaults: Mapping[str, LayerRope]
) -> dict[str, RopeFacts]:
    """Read one set of facts per layer type, for families like Gemma 3.

    transformers 5 writes `rope_parameters` = {layer type: parameters}. transformers 4 wrote one theta key per
    layer type, and `rope_scaling`, which overrides the parameters of the layer types that take it.
    Whole heads rotate, or the part that the type `proportional` states.

    Raises:
        CheckpointError: see `read_rope`; also for a layer type that is not in `defaults`.
    """
    stated = ConfigKeys(_object(keys, "rope_parameters"), f"{keys.where}: rope_parameters")
    for layer_type in stated.values:
        if stated.has(layer_type) and layer_type not in defaults:
            raise stated.refusal(layer_type, f"the layer types of this family are {', '.join(defaults)}")
    scaling = _object(keys, "rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        raise keys.refusal("rope_scaling", "transformers 5 ignores `type` here: rename it to `rope_type`")
    ropes = {}
    for layer_type, layer_rope in defaults.items():
        parameters = _object(stated, layer_type) or dict(layer_rope.parameters)
        if layer_rope.takes_rope_scaling:
            parameters = parameters | scaling
        rope = ConfigKeys(parameters, f"{stated.where}: {layer_type}")
        ropes[layer_type] = _read_layer_rope(keys, rope, layer_rope, head_dim)
    return ropes


def _read_layer_rope(keys: ConfigKeys, rope: ConfigKeys, layer_rope: LayerRope, head_dim: int) -> RopeFacts:
    _refuse_unknown(rope, frozenset())
    rope_type = _rope_type(rope, _ROPE_TYPES)
    theta = layer_rope.theta
    if layer_rope.theta_key is not None:
        theta = keys.number(layer_rope.theta_key, theta)
    if rope_type == "yarn":
        # transformers' own check looks for the keys outside and fails.
        raise rope.refusal("rope_type", "yarn per layer type is unsupported, as in transformers 5.5")
    return read_rope_parameters(
        rope,
        rope_type,
        head_dim=layer_rope.head_dim or head_dim,
        theta=rope.number("rope_theta", theta),
        partial_rotary_factor=_partial_rotary_factor(keys, rope, rope_type, None),
        max_length=keys.integer("max_position_embeddings"),
        original_length=None,
    )


def _object(keys: ConfigKeys, key: str) -> dict[str, object]:
    value = keys.values.get(key) or {}
    if not isinstance(value, dict):
        raise keys.refusal(key, "must be an object")
    return value


def _refuse_unknown(rope: ConfigKeys, family_keys: Set[str]) -> None:
    if rope.has("attn_factor"):
        raise rope.refusal(
            "attn_factor",
            "transformers ignores it, other servers multiply attention_factor by it: set attention_factor, "
            "or remove the key to get transformers' result",
        )
    rope.refuse_unread(
        "vinfer does not know this key and cannot tell whether it changes the logits",
        harmless=ROPE_KEYS | family_keys,
    )


def _rope_type(rope: ConfigKeys, names: Mapping[str, RopeType]) -> RopeType:
    key = "rope_type" if rope.has("rope_type") else "type"
    name = rope.string(key, "default")
    if name not in names:
        raise rope.refusal(key, f"supported rope types: {', '.join(names)}")
    return names[name]


def _partial_rotary_factor(
    keys: ConfigKeys, rope: ConfigKeys, rope_type: RopeType, default: float | None
) -> float:
    """Read the factor inside, or outside, or the family's default.

    If inside and outside differ, transformers uses the inner one for `default`. For other types the
    table uses the outer one, and the attention layers may use the inner one.
    """
    key = "partial_rotary_factor"
    outside = keys.number(key) if keys.has(key) else None
    fallback = outside if outside is not None else default
    factor = rope.number(key, 1.0 if fallback is None else fallback)
    if outside is not None and outside != factor and rope_type != "default":
        raise rope.refusal(key, f"contradicts {outside} outside: remove one of them")
    if default is None and factor != 1.0 and rope_type != "proportional":
        place = rope if rope.has(key) else keys
        raise place.refusal(key, "this family rotates whole heads: only 1.0 is supported")
    return factor

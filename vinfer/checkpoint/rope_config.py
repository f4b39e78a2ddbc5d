"""Rotary facts out of a config.json of transformers 4 or 5."""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.known_keys import ROPE_KEYS
from vinfer.checkpoint.rope import RopeFacts


def read_rope(
    keys: ConfigKeys,
    *,
    head_dim: int,
    default_theta: float = 10_000.0,
    default_partial_rotary_factor: float = 1.0,
) -> RopeFacts:
    """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (transformers 4).

    Where a file has both forms, `rope_scaling` replaces `rope_parameters`, and a theta inside it wins
    over the one outside, as in transformers 5.
    """
    place = "rope_scaling" if keys.values.get("rope_scaling") else "rope_parameters"
    parameters = keys.values.get(place) or {}
    if not isinstance(parameters, dict):
        raise keys.refusal(place, "must be an object")
    rope = ConfigKeys(parameters, f"{keys.where}: {place}")
    theta = rope.number("rope_theta", keys.number("rope_theta", default_theta))
    rope_type = rope.string("rope_type", rope.string("type", "default"))
    if rope_type not in ("default", "linear", "llama3"):
        raise rope.refusal(
            "rope_type" if rope.has("rope_type") else "type", "rope types served: default, linear, llama3"
        )
    for key, value in parameters.items():
        if value is not None and key not in ROPE_KEYS:
            raise rope.refusal(
                key, "vinfer does not know this key and cannot tell whether it changes the logits"
            )
    outside = keys.number("partial_rotary_factor", default_partial_rotary_factor)
    rotary_dim = int(head_dim * rope.number("partial_rotary_factor", outside))
    if rope_type == "default":
        return RopeFacts(theta=theta, rotary_dim=rotary_dim)
    if rope_type == "linear":
        return RopeFacts(theta=theta, rotary_dim=rotary_dim, rope_type="linear", factor=rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.refusal("high_freq_factor", f"must be greater than low_freq_factor = {low}")
    return RopeFacts(
        theta=theta,
        rotary_dim=rotary_dim,
        rope_type="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=rope.integer(
            "original_max_position_embeddings", keys.integer("max_position_embeddings")
        ),
    )

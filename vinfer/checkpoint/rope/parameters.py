"""Reads and checks the parameters of one rope type: the contents of `rope_parameters`.

Runs in the build half, on any thread. Source of each key's meaning and default:
transformers 5.5, `modeling_rope_utils.py`. Does not know where in a file the parameters stood.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.rope.facts import RopeFacts, RopeType
from vinfer.checkpoint.rope.frequencies import longrope_attention_factor, yarn_attention_factor
from vinfer.errors import CheckpointError


def read_rope_parameters(
    rope: ConfigKeys,
    rope_type: RopeType,
    *,
    head_dim: int,
    theta: float,
    partial_rotary_factor: float,
    max_length: int,
    original_length: int | None,
) -> RopeFacts:
    """Read the keys of `rope_type`; other keys of `rope` are ignored.

    Args:
        max_length: `max_position_embeddings`.
        original_length: overrides `original_max_position_embeddings` of `rope` unless None.

    Raises:
        CheckpointError: a missing key or a wrong value.
    """
    plain = RopeFacts(theta=theta, rotary_dim=_rotary_dim(rope, rope_type, head_dim, partial_rotary_factor))
    if rope_type in ("linear", "dynamic"):
        plain = dataclasses.replace(plain, rope_type=rope_type, factor=rope.number("factor"))
    if original_length is None and rope_type in ("llama3", "yarn", "longrope"):
        original_length = rope.integer("original_max_position_embeddings", max_length)
    match rope_type:
        case "dynamic":
            facts = dataclasses.replace(plain, original_max_position_embeddings=max_length)
        case "llama3":
            facts = _llama3(rope, plain, original_length or max_length)
        case "yarn":
            facts = _yarn(rope, plain, original_length or max_length, max_length)
        case "longrope":
            facts = _longrope(rope, plain, original_length or max_length, max_length)
        case "proportional":
            facts = dataclasses.replace(
                plain,
                rope_type="proportional",
                factor=rope.number("factor", 1.0),
                num_rotated=int(partial_rotary_factor * head_dim // 2),
            )
        case _:
            facts = plain
    _require_finite(rope, facts, max_length)
    return facts


def _rotary_dim(rope: ConfigKeys, rope_type: RopeType, head_dim: int, partial_rotary_factor: float) -> int:
    if partial_rotary_factor > 1:
        raise rope.refusal("partial_rotary_factor", f"is {partial_rotary_factor}; must be at most 1")
    rotary_dim = head_dim if rope_type == "proportional" else int(head_dim * partial_rotary_factor)
    if rotary_dim < 2 or rotary_dim % 2:
        raise rope.refusal(
            "partial_rotary_factor",
            f"{partial_rotary_factor} of {head_dim} head dimensions is {rotary_dim}, but rotary embedding "
            "needs an even number, at least 2",
        )
    return rotary_dim


def _llama3(rope: ConfigKeys, plain: RopeFacts, original_length: int) -> RopeFacts:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.refusal("high_freq_factor", f"must be greater than low_freq_factor = {low}")
    return dataclasses.replace(
        plain,
        rope_type="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original_length,
    )


def _yarn(rope: ConfigKeys, plain: RopeFacts, original_length: int, max_length: int) -> RopeFacts:
    if plain.theta <= 1:
        raise rope.refusal("rope_theta", f"is {plain.theta}, but yarn needs a value greater than 1")
    # A null factor means the ratio of lengths; without the key, transformers rejects the file, as we do.
    has_ratio = "factor" in rope.values and not rope.has("factor")
    factor = max_length / original_length if has_ratio else rope.number("factor")
    beta_fast, beta_slow = (
        _number_or_zero(rope, "beta_fast") or 32.0,
        _number_or_zero(rope, "beta_slow") or 1.0,
    )
    if beta_fast < beta_slow:
        raise rope.refusal("beta_fast", f"is {beta_fast}; must be at least beta_slow = {beta_slow}")
    mscale, mscale_all_dim = _number_or_zero(rope, "mscale"), _number_or_zero(rope, "mscale_all_dim")
    return dataclasses.replace(
        plain,
        rope_type="yarn",
        factor=factor,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=rope.boolean("truncate", True),
        mscale_all_dim=mscale_all_dim,
        original_max_position_embeddings=original_length,
        attention_factor=rope.number(
            "attention_factor", yarn_attention_factor(factor, mscale, mscale_all_dim)
        ),
    )


def _longrope(rope: ConfigKeys, plain: RopeFacts, original_length: int, max_length: int) -> RopeFacts:
    if original_length < 2:
        raise rope.refusal("original_max_position_embeddings", f"is {original_length}; must be at least 2")
    factor = rope.number("factor", max_length / original_length)
    return dataclasses.replace(
        plain,
        rope_type="longrope",
        factor=factor,
        short_factors=_factors(rope, "short_factor", plain.rotary_dim // 2),
        long_factors=_factors(rope, "long_factor", plain.rotary_dim // 2),
        original_max_position_embeddings=original_length,
        attention_factor=rope.number("attention_factor", longrope_attention_factor(factor, original_length)),
    )


def _factors(rope: ConfigKeys, key: str, count: int) -> tuple[float, ...]:
    stated = rope.values.get(key)
    if not isinstance(stated, list) or len(stated) != count:
        length = f", not {len(stated)}" if isinstance(stated, list) else ""
        raise rope.refusal(
            key, f"must be a list of {count} numbers, one per pair of rotated dimensions{length}"
        )
    numbers = ConfigKeys({f"{key}[{index}]": value for index, value in enumerate(stated)}, rope.where)
    return tuple(numbers.number(name) for name in numbers.values)


def _number_or_zero(rope: ConfigKeys, key: str) -> float:
    """Read a number that transformers treats as absent if it is 0."""
    return rope.number(key) if rope.values.get(key) else 0.0


def _require_finite(rope: ConfigKeys, facts: RopeFacts, max_length: int) -> None:
    """Reject parameters that are each in range but together exceed the range of float32."""
    num_rotated = facts.num_rotated if facts.rope_type == "proportional" else facts.rotary_dim // 2
    try:
        with np.errstate(all="ignore"):
            frequencies = [facts.inverse_frequencies(length)[:num_rotated] for length in (1, max_length)]
        is_finite = bool(np.isfinite(frequencies).all() and np.greater(frequencies, 0).all())
    except (ValueError, ArithmeticError):
        is_finite = False
    if not is_finite:
        raise CheckpointError(
            f"{rope.where}: with rope_theta = {facts.theta} the frequencies are not finite: "
            "the file is corrupt; download it again"
        )

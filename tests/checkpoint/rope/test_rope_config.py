"""How rotary facts are read from a config.json: one rule, one test. See also test_rope_parity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.rope.config import LayerRope, read_rope, read_ropes_by_layer_type
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.errors import CheckpointError

MAX_LENGTH = 128
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3, 4], "long_factor": [5.0, 6.0, 7.0, 8.0]}
GEMMA = {
    "full_attention": LayerRope(theta=1e6, theta_key="rope_theta", takes_rope_scaling=True),
    "sliding_attention": LayerRope(theta=1e4, theta_key="rope_local_base_freq"),
}


def _keys(config: dict[str, Any]) -> ConfigKeys:
    return ConfigKeys({"max_position_embeddings": MAX_LENGTH} | config, "config.json")


def _read(config: dict[str, Any], **arguments: Any) -> RopeFacts:
    return read_rope(_keys(config), head_dim=8, **arguments)


def _layers(config: dict[str, Any]) -> dict[str, RopeFacts]:
    return read_ropes_by_layer_type(_keys(config), head_dim=8, defaults=GEMMA)


def _facts(**changes: Any) -> RopeFacts:
    return RopeFacts(**({"theta": 10_000.0, "rotary_dim": 8} | changes))


LLAMA3_FACTS: dict[str, Any] = LLAMA3 | {"original_max_position_embeddings": 64}
YARN_FACTS: dict[str, Any] = YARN | {
    "original_max_position_embeddings": 64,
    "attention_factor": 0.1 * np.log(4.0) + 1,
}
LONGROPE_FACTS: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factors": (1.0, 2.0, 3.0, 4.0),
    "long_factors": (5.0, 6.0, 7.0, 8.0),
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "attention_factor": (1 + 1 / 6) ** 0.5,
}


@pytest.mark.parametrize(
    ("scaling", "facts"),
    [
        ({"rope_type": "default"}, {}),
        (LINEAR, LINEAR),
        (
            {"rope_type": "dynamic", "factor": 4},
            {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
        (LLAMA3 | {"original_max_position_embeddings": 64}, LLAMA3_FACTS),
        (YARN | {"original_max_position_embeddings": 64}, YARN_FACTS),
        (LONGROPE | {"original_max_position_embeddings": 64}, LONGROPE_FACTS),
        (
            {"rope_type": "proportional", "partial_rotary_factor": 0.5},
            {"rope_type": "proportional", "num_rotated": 2},
        ),
    ],
)
def test_every_form_of_a_type_gives_the_same_facts(scaling: dict[str, Any], facts: dict[str, Any]) -> None:
    expected = _facts(theta=5e5, **facts)
    assert _read({"rope_parameters": scaling | {"rope_theta": 5e5}}) == expected
    assert _read({"rope_scaling": scaling, "rope_theta": 500000}) == expected
    old = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert _read({"rope_scaling": old, "rope_theta": 5e5}) == expected


@pytest.mark.parametrize(
    "config", [{}, {"rope_parameters": None, "rope_scaling": None}, {"rope_scaling": {}}]
)
def test_a_file_that_says_nothing_has_the_family_s_default(config: dict[str, Any]) -> None:
    assert _read(config) == _facts()
    assert _read(config, default_theta=5e5) == _facts(theta=5e5)
    assert _read(config, default_partial_rotary_factor=0.25) == _facts(rotary_dim=2)


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 20}, 20.0),
        ({"rope_theta": 20, "rope_parameters": {"rope_theta": 30}}, 30.0),
        ({"rope_theta": 20, "rope_scaling": LINEAR | {"rope_theta": 30}}, 30.0),
        # rope_scaling replaces rope_parameters, including its theta.
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 30}}, 10_000.0),
    ],
)
def test_which_theta_wins(config: dict[str, Any], theta: float) -> None:
    assert _read(config).theta == theta


def test_rope_scaling_replaces_rope_parameters() -> None:
    assert _read({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 9.0}}).factor == 2.0
    assert _read({"rope_scaling": {}, "rope_parameters": LINEAR | {"factor": 9.0}}).factor == 9.0


@pytest.mark.parametrize(
    ("inside", "outside", "arguments", "length"),
    [
        ({}, {}, {}, MAX_LENGTH),
        ({"original_max_position_embeddings": 64}, {}, {}, 64),
        ({"original_max_position_embeddings": 64}, {"original_max_position_embeddings": 32}, {}, 32),
        ({"original_max_position_embeddings": 64}, {}, {"default_original_length": 16}, 16),
        ({}, {"original_max_position_embeddings": 32}, {"default_original_length": 16}, 32),
    ],
)
@pytest.mark.parametrize("scaling", [LLAMA3, YARN, LONGROPE])
def test_which_original_length_wins(
    scaling: dict[str, Any],
    inside: dict[str, int],
    outside: dict[str, int],
    arguments: dict[str, int],
    length: int,
) -> None:
    rope = _read({"rope_scaling": scaling | inside} | outside, **arguments)
    assert rope.original_max_position_embeddings == length


@pytest.mark.parametrize(
    ("config", "rotary_dim"),
    [
        ({}, 4),
        ({"partial_rotary_factor": 0.25}, 2),
        ({"rope_parameters": {"partial_rotary_factor": 0.75}}, 6),
        ({"rope_parameters": {"partial_rotary_factor": 0.75}, "partial_rotary_factor": 0.25}, 6),
        ({"rope_parameters": LINEAR, "partial_rotary_factor": 1.0}, 8),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.25}, 2),
    ],
)
def test_which_part_of_a_head_rotates(config: dict[str, Any], rotary_dim: int) -> None:
    assert _read(config, default_partial_rotary_factor=0.5).rotary_dim == rotary_dim


@pytest.mark.parametrize(
    ("parameters", "attribute", "value"),
    [
        (YARN | {"attention_factor": 1.5}, "attention_factor", 1.5),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "attention_factor", 1.0),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}, "mscale_all_dim", 0.8),
        (YARN | {"mscale": 0, "mscale_all_dim": 0.8}, "attention_factor", YARN_FACTS["attention_factor"]),
        (YARN | {"attention_factor": None}, "attention_factor", YARN_FACTS["attention_factor"]),
        (YARN | {"beta_fast": 16, "beta_slow": 2}, "beta_fast", 16.0),
        (YARN | {"beta_fast": 0, "beta_slow": 2}, "beta_fast", 32.0),
        (YARN | {"beta_slow": None}, "beta_slow", 1.0),
        (YARN | {"truncate": False}, "truncate", False),
        (YARN | {"factor": None, "original_max_position_embeddings": 32}, "factor", 4.0),
        (LONGROPE | {"factor": 16.0}, "factor", 16.0),
        (LONGROPE | {"original_max_position_embeddings": 16}, "factor", 8.0),
        (LONGROPE | {"attention_factor": 1.5}, "attention_factor", 1.5),
        (LONGROPE, "attention_factor", 1.0),
        (LONGROPE | {"rope_type": "su"}, "rope_type", "longrope"),
    ],
)
def test_each_key_has_its_rule(parameters: dict[str, Any], attribute: str, value: object) -> None:
    assert getattr(_read({"rope_parameters": parameters}), attribute) == value


def test_keys_of_another_type_and_null_keys_change_nothing() -> None:
    others = {"low_freq_factor": 2.0, "attention_factor": 3.0, "short_factor": [1], "some_key": None}
    assert _read({"rope_scaling": LINEAR | others}) == _facts(**LINEAR)
    assert _read({"rope_scaling": {"factor": 4.0}}) == _facts()


def test_a_family_can_rename_types_and_add_keys() -> None:
    config = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    with pytest.raises(CheckpointError, match="mrope_section"):
        _read(config)
    rope = _read(config, renamed_types={"mrope": "default"}, family_keys={"mrope_section"})
    assert rope == _facts()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\]: must be an object"),
        (
            {"rope_scaling": {"type": "ntk"}},
            "type = 'ntk': supported rope types: default, linear, dynamic, yarn",
        ),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type = 3: must be a string"),
        ({"rope_scaling": LINEAR | {"alpha": 2.0}}, "alpha = 2.0: vinfer does not know this key"),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention = {}: vinfer does not know"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling has no factor"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "has no factor"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "has no factor"),
        ({"rope_scaling": LINEAR | {"factor": 0}}, "factor = 0: must be finite and greater than 0"),
        ({"rope_scaling": LINEAR | {"factor": float("nan")}}, "factor = nan"),
        ({"rope_scaling": LINEAR | {"factor": "2"}}, "factor = '2': must be a number"),
        ({"rope_scaling": LINEAR | {"factor": 1e300}}, "frequencies are not finite"),
        ({"rope_theta": 1e300}, r"rope_theta = 1e\+300 the frequencies are not finite"),
        ({"rope_theta": float("inf")}, "rope_theta = inf"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "greater than low_freq_factor = 1.0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "has no low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "from 1 to"),
        ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}}, "at least beta_slow = 2.0"),
        ({"rope_scaling": YARN | {"beta_fast": 1e308}}, "frequencies are not finite"),
        ({"rope_scaling": YARN | {"beta_slow": -1}}, "beta_slow = -1"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate = 1: must be true or false"),
        ({"rope_scaling": YARN | {"attention_factor": 0.0}}, "attention_factor = 0.0"),
        ({"rope_scaling": YARN | {"mscale": -1.0}}, "mscale = -1.0"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "yarn needs a value greater than 1"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0] * 3}}, "short_factor.*4 numbers.*not 3"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0] * 8}}, "long_factor.*4 numbers.*not 8"),
        ({"rope_scaling": LONGROPE | {"long_factor": 2.0}}, "long_factor = 2.0: must be a list of 4"),
        ({"rope_scaling": LONGROPE | {"long_factor": None}}, "long_factor = None: must be a list"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0, 1.0, None, 1.0]}}, r"no long_factor\[2\]"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0, 0.0, 1.0, 1.0]}}, r"short_factor\[1\] = 0.0"),
        ({"rope_scaling": LONGROPE | {"original_max_position_embeddings": 1}}, "at least 2"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor = 0.5: this family rotates",
        ),
        ({"partial_rotary_factor": 0.5}, "config.json: partial_rotary_factor = 0.5: this family rotates"),
    ],
)
def test_what_is_not_served_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        _read(config)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"partial_rotary_factor": 1.5}, "at most 1"),
        ({"partial_rotary_factor": 0.4}, "0.4 of 8 head dimensions is 3"),
        ({"partial_rotary_factor": 0.1}, "dimensions is 0"),
        (
            {"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
            "partial_rotary_factor = 0.5: contradicts 0.25 outside",
        ),
        # The lists have one entry per rotated pair.
        ({"rope_scaling": LONGROPE, "partial_rotary_factor": 0.5}, "short_factor.*2 numbers.*not 4"),
    ],
)
def test_a_part_that_cannot_rotate_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _read(config, default_partial_rotary_factor=1.0)


@pytest.mark.parametrize(
    ("config", "full", "sliding"),
    [
        ({}, {"theta": 1e6}, {}),
        ({"rope_theta": 20, "rope_local_base_freq": 30}, {"theta": 20.0}, {"theta": 30.0}),
        ({"rope_scaling": LINEAR}, LINEAR | {"theta": 1e6}, {}),
        (
            {"rope_parameters": {"full_attention": LINEAR | {"rope_theta": 20}}, "rope_theta": 40},
            LINEAR | {"theta": 20.0},
            {},
        ),
        (
            {"rope_parameters": {"full_attention": None, "sliding_attention": LINEAR}, "rope_theta": 40},
            {"theta": 40.0},
            LINEAR,
        ),
        (
            {"rope_parameters": {"full_attention": LINEAR}, "rope_scaling": {"factor": 3.0}},
            {"rope_type": "linear", "factor": 3.0, "theta": 1e6},
            {},
        ),
        # An original length outside is not read here.
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64},
            LLAMA3 | {"theta": 1e6, "original_max_position_embeddings": MAX_LENGTH},
            {},
        ),
    ],
)
def test_each_layer_type_has_its_own_facts(
    config: dict[str, Any], full: dict[str, Any], sliding: dict[str, Any]
) -> None:
    assert _layers(config) == {"full_attention": _facts(**full), "sliding_attention": _facts(**sliding)}


def test_layer_types_may_differ_in_head_dim_and_default_type() -> None:
    defaults = {
        "full_attention": LayerRope(
            theta=1e6, parameters={"rope_type": "proportional", "partial_rotary_factor": 0.25}, head_dim=16
        )
    }
    assert read_ropes_by_layer_type(_keys({"rope_theta": 3}), head_dim=8, defaults=defaults) == {
        "full_attention": _facts(theta=1e6, rotary_dim=16, rope_type="proportional", num_rotated=2)
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_parameters": {"full_attention": {}, "chunked_attention": {"rope_theta": 1}}},
            "chunked_attention = .*full_attention, sliding",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}},
            "rope_type = 'default': the layer types of this family",
        ),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention = 3: must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "transformers 5 ignores `type` here"),
        ({"rope_scaling": YARN}, "rope_parameters: full_attention: rope_type = 'yarn'"),
        ({"rope_parameters": {"sliding_attention": LINEAR | {"alpha": 1}}}, "sliding_attention: alpha = 1"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "ntk"}}}, "'ntk': supported rope types"),
        ({"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}}, "rotates whole heads"),
    ],
)
def test_what_is_not_served_per_layer_type_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _layers(config)

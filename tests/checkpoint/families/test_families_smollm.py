"""SmolLM3: one fact, one rule, one test; configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

SMOLLM3: dict[str, Any] = {
    "model_type": "smollm3",
    "architectures": ["SmolLM3ForCausalLM"],
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 32}


@pytest.mark.parametrize(
    ("changes", "rotating"),
    [
        ({}, [1, 1, 1, 0, 1]),
        ({"no_rope_layer_interval": 2}, [1, 0, 1, 0, 1]),
        ({"no_rope_layer_interval": 1}, [0, 0, 0, 0, 0]),
        ({"no_rope_layers": [0, 1, 1, 1, 0], "no_rope_layer_interval": 2}, [0, 1, 1, 1, 0]),
        ({"no_rope_layers": [1, 0, 1, 0, 1, 0, 0]}, [1, 0, 1, 0, 1]),
    ],
)
def test_a_list_wins_over_the_interval(changes: dict[str, Any], rotating: list[int]) -> None:
    assert normalise({**SMOLLM3, **changes}).config["no_rope_layers"] == rotating


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, (None,) * 5),
        ({"sliding_window": 32}, (None,) * 5),
        ({"use_sliding_window": True}, (None,) * 5),
        (SLIDING, (None, None, None, 32, None)),
        (SLIDING | {"no_rope_layers": [0, 1, 1, 1, 1]}, (32, None, None, None, None)),
        (
            SLIDING | {"layer_types": ["sliding_attention"] + ["full_attention"] * 4},
            (32, None, None, None, None),
        ),
    ],
)
def test_layers_that_do_not_rotate_slide(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert normalise({**SMOLLM3, **changes}).facts.windows == windows


def test_the_defaults_are_those_of_transformers() -> None:
    normalised = normalise(SMOLLM3)
    assert normalised.facts.is_tied
    assert normalised.ropes["default"].theta == 2e6
    assert normalise({**SMOLLM3, "rope_theta": 5e6}).ropes["default"].theta == 5e6
    assert not normalise({**SMOLLM3, "tie_word_embeddings": False}).facts.is_tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_rope_layers": [1, 0]}, "2 entries for num_hidden_layers = 5"),
        ({"no_rope_layers": [1, 0, 2, 1, 1]}, "list of 0s and 1s"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
        (
            {"layer_types": ["sliding_attention"] * 5, "sliding_window": 8},
            "use_sliding_window is false: correct one of them",
        ),
        (
            {"layer_types": ["sliding_attention"] * 5, "use_sliding_window": True},
            "sliding_window = None: layers of type",
        ),
        ({"num_key_value_heads": ...}, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in (SMOLLM3 | changes).items() if value is not ...}
    with pytest.raises(CheckpointError, match=message):
        normalise(config)

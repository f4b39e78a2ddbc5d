"""Shape keys and buckets derived from a model's config."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinfer.config import (
    ModelConfig,
    PrecompileConfig,
    prefill_shapes,
    slot_buckets,
    vision_shapes,
)


def model(**fields: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "source": "org/m", **fields})


@pytest.mark.parametrize(
    ("num_slots", "dp", "growth", "buckets"),
    [
        (1, 1, 4, (1,)),
        (4, 1, 4, (1, 4)),
        (6, 1, 4, (1, 4, 6)),
        (16, 1, 4, (1, 4, 16)),
        (16, 1, 2, (1, 2, 4, 8, 16)),
        (6, 1, 2, (1, 2, 4, 6)),
        (16, 2, 2, (16,)),
        (2, 2, 4, (2,)),
    ],
)
def test_slot_buckets(num_slots: int, dp: int, growth: int, buckets: tuple[int, ...]) -> None:
    assert slot_buckets(num_slots, dp, growth=growth) == buckets


@pytest.mark.parametrize(
    ("max_model_len", "lengths"),
    [
        (None, [64, 256, 1024]),
        (2048, [64, 256, 1024]),
        (512, [64, 256, 512]),
        (256, [64, 256]),
        (100, [64, 100]),
        (32, [32]),
    ],
)
def test_default_prefill_lengths_stop_at_max_model_len(max_model_len: int | None, lengths: list[int]) -> None:
    assert prefill_shapes(model(), max_model_len) == tuple((1, length) for length in lengths)


def test_lists_expand_to_every_combination_once_and_in_order() -> None:
    config = model(
        task="image-text",
        precompile=[
            {"batch_size": [4, 1], "prefill_length": [512, 128]},
            {"batch_size": 1, "prefill_length": 128, "vision": {"height": 336, "width": 224}},
            {
                "prefill_length": 64,
                "vision": [
                    {"batch_size": 2, "channels": 1, "height": 8, "width": 9},
                    {"height": 336, "width": 224},
                ],
            },
        ],
    )
    assert prefill_shapes(config, None) == ((1, 64), (1, 128), (1, 512), (4, 128), (4, 512))
    assert vision_shapes(config) == ((1, 3, 336, 224), (2, 1, 8, 9))


counts = st.integers(1, 16)
lengths = st.integers(1, 4096)
entries = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": counts | st.lists(counts, min_size=1, max_size=4),
        "prefill_length": lengths | st.lists(lengths, min_size=1, max_size=4),
        "vision": st.fixed_dictionaries({"height": counts, "width": counts}),
    },
)


@settings(deadline=None)
@given(st.lists(entries, min_size=1, max_size=4))
def test_shape_expansion_is_total_and_sorted(precompile: list[dict[str, object]]) -> None:
    config = model(task="image-text", precompile=precompile)
    shapes = prefill_shapes(config, 4096)
    assert shapes == tuple(sorted(set(shapes)))
    assert vision_shapes(config) == tuple(sorted(set(vision_shapes(config))))
    for entry in config.precompile:
        alone = prefill_shapes(config.model_copy(update={"precompile": (entry,)}), 4096)
        assert set(alone) <= set(shapes)
        assert len(alone) == len(set(entry.batch_size)) * len(set(entry.prefill_length or (64, 256, 1024)))
    assert {shape.batch_size for shape in shapes} == {
        size for e in config.precompile for size in e.batch_size
    }


def test_a_scalar_and_a_list_of_one_are_the_same() -> None:
    one = PrecompileConfig.model_validate({"batch_size": 2, "prefill_length": 64})
    assert one == PrecompileConfig.model_validate({"batch_size": [2], "prefill_length": [64]})

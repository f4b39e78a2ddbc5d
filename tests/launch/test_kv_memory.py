"""How many pages a model gets on a machine, and what is refused because they are too few."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.bundle.kv_pages import PageGroup, PagePlan
from vinfer.config import ModelConfig
from vinfer.errors import ConfigError
from vinfer.launch.kv_memory import DeviceMemory, choose_pages

PAGE_BYTES = 1 << 20
PLAN = PagePlan(
    page_size=32,
    max_model_len=32_768,
    num_slots=64,
    max_write_len=1024,
    groups=(PageGroup(None, PAGE_BYTES),),
)
GIB = 1 << 30


def chosen(total: int | None = 16 * GIB, *, platform: Any = "cpu", dp: int = 1, **model: Any) -> int:
    memory = DeviceMemory(platform=platform, num_devices=1, total=total, weights=2 * GIB, temporary=GIB)
    config = ModelConfig.model_validate({"name": "m", "source": "org/m", **model})
    (num_pages,) = choose_pages(PLAN, config, memory, dp=dp, where="models[0]")
    return num_pages


@pytest.mark.parametrize(
    ("overrides", "num_pages"),
    [
        ({}, 4096),
        ({"total": 8 * GIB}, 2048),
        ({"total": 2**50}, 4096),
        # What weights and programs leave of 90 %, and what all slots can use where that is less or unknown.
        ({"platform": "cuda"}, int(14.4 * 1024) - 3 * 1024),
        ({"platform": "cuda", "total": None}, 65_536),
        ({"platform": "cuda", "total": 2**50}, 65_536),
        ({"kv_cache": {"bytes": GIB}}, 1024),
        ({"kv_cache": {"pages": 77}}, 77),
        ({"kv_cache": {"pages": 77}, "dp": 2}, 38),
        ({"kv_cache": {"memory_fraction": 0.25}}, 4096),
    ],
    ids=str,
)
def test_pages_of_a_machine(overrides: dict[str, Any], num_pages: int) -> None:
    assert chosen(**overrides) == num_pages


def test_a_stated_length_has_to_fit() -> None:
    stated: dict[str, Any] = {"max_model_len": PLAN.max_model_len}
    assert chosen(**stated, kv_cache={"pages": 1024}) == 1024
    with pytest.raises(ConfigError) as raised:
        chosen(**stated, kv_cache={"pages": 1023})
    assert raised.value.message == (
        "models[0].max_model_len is 32768; the KV cache holds 32736 tokens: lower max_model_len, leave it "
        "out to take what fits, or raise kv_cache"
    )
    # Without it, requests may be as long as fits.
    assert PLAN.max_len([chosen(kv_cache={"pages": 1023})]) == 32_736


def test_pages_hold_at_least_one_prefill() -> None:
    assert chosen(kv_cache={"pages": 32}) == 32
    with pytest.raises(ConfigError, match=r"models\[0\].kv_cache has room for 31 pages .* up to 1024 tokens"):
        chosen(kv_cache={"pages": 31})


def test_a_fraction_of_unknown_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kv_cache.memory_fraction is 0.5, but .*: set kv_cache.bytes"):
        chosen(total=None, platform="cuda", kv_cache={"memory_fraction": 0.5})

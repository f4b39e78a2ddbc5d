"""What a model takes of a device, how many requests run together, and what is said if it is too much."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vinfer.bundle.kv_pages import PageGroup, PagePlan
from vinfer.config import ModelConfig
from vinfer.errors import ConfigError, DeviceError
from vinfer.launch.fit import FixedParts, ModelFit, fit_model
from vinfer.launch.kv_memory import DeviceMemory

MIB, GIB = 1 << 20, 1 << 30
PAGES = PagePlan(
    page_size=32, max_model_len=4096, num_slots=8, max_write_len=256, groups=(PageGroup(None, MIB),)
)
PARTS = FixedParts({"weights": 2 * GIB, "state": MIB, "image_features": GIB}, PAGES)


def fit(
    total: int | None,
    *,
    platform: Any = "tpu",
    parts: FixedParts = PARTS,
    temporary: int = 0,
    num_devices: int = 1,
    stored: tuple[tuple[int, ...], ...] = (),
    **model: Any,
) -> ModelFit:
    config = ModelConfig.model_validate({"name": "m", "source": "org/m", **model})
    memory = DeviceMemory(
        platform=platform,
        num_devices=num_devices,
        total=total,
        weights=parts.num_bytes,
        temporary=temporary,
    )
    return fit_model(parts, config, memory, dp=1, where="models[0]", stored=stored)


def test_all_parts_are_counted() -> None:
    found = fit(16 * GIB, kv_cache={"pages": 100}, temporary=3 * MIB)
    assert found.problem is None
    assert found.kv_cache_bytes == 100 * MIB
    assert found.num_bytes == 3 * GIB + MIB + 100 * MIB + 3 * MIB


@pytest.mark.parametrize(
    ("length", "count"),
    [(1, 8), (32, 8), (33, 8), (12 * 32, 8), (12 * 32 + 1, 7), (50 * 32, 2), (51 * 32, 1), (3201, 0)],
)
def test_requests_share_the_pages_up_to_the_slots(length: int, count: int) -> None:
    found = fit(16 * GIB, kv_cache={"pages": 100})
    assert found.max_len == 3200
    assert found.num_together(length) == count


def test_a_windowed_request_holds_no_more_than_its_window() -> None:
    windowed = dataclasses.replace(PAGES, groups=(PageGroup(256, MIB),))
    # (256 + 256) / 32 pages, and one more because both may begin within a page.
    found = fit(16 * GIB, parts=FixedParts(PARTS.by_name, windowed), kv_cache={"pages": 51})
    assert found.num_together(4096) == 3


def test_weights_that_do_not_fit_are_refused_with_the_keys_to_change() -> None:
    found = fit(3 * GIB)
    assert (found.num_pages, found.num_together(1), found.max_len) == ((), 0, 0)
    assert isinstance(found.problem, DeviceError)
    assert found.problem.message == (
        "models[0] needs 2.00 GiB of weights, 0.00 GiB of state and 1.00 GiB of image features per device; a "
        "device has 3.00: raise mesh.tp, lower num_slots, or use a smaller model or dtype"
    )


def test_a_stated_cache_that_does_not_fit_is_refused_with_the_programs_needs() -> None:
    stated: dict[str, Any] = {"kv_cache": {"pages": 128}, "temporary": 900 * MIB}
    found = fit(4 * GIB, **stated)
    assert found.problem is not None
    assert found.problem.message == (
        "models[0] needs 3.00 GiB of weights, state and image features, 0.12 GiB of KV cache and 0.88 GiB of "
        "temporary memory per device; a device has 4.00: lower kv_cache, or raise mesh.tp"
    )
    assert fit(5 * GIB, **stated).problem is None


def test_a_cache_too_small_for_a_prefill_is_the_problem_of_the_plan() -> None:
    found = fit(16 * GIB, kv_cache={"pages": 7})
    assert isinstance(found.problem, ConfigError)
    assert "room for 7 pages of 32 tokens" in found.problem.message


def test_emulated_devices_share_the_memory_of_the_process() -> None:
    """The weights of four devices of 3 GiB each were once compared with all of the memory."""
    assert fit(16 * GIB, platform="cpu", kv_cache={"pages": 8}).problem is None
    assert fit(8 * GIB, platform="cpu", kv_cache={"pages": 8}, num_devices=4).problem is not None


def test_stored_code_decides_only_a_default_size() -> None:
    # 90 % of 4 GiB, less 3 GiB and 1 MiB: 613 pages, of which slots can use at most 8 * 128.
    assert fit(4 * GIB).num_pages == (613,)
    assert fit(4 * GIB, stored=((600,),)).num_pages == (600,)
    assert fit(4 * GIB, stored=((600,),), kv_cache={"pages": 610}).num_pages == (610,)
    assert fit(4 * GIB, stored=((127,), (120,)), max_model_len=4096).num_pages == (613,)


def test_memory_that_is_not_known_refuses_nothing() -> None:
    found = fit(None)
    assert (found.problem, found.num_pages) == (None, (1024,))

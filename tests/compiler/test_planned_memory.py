"""What a plan says of memory is within 10 % of the bundle that is then built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny.bundles import BUNDLES_DIR, model_config

from vinfer.bundle.directory import read_manifest
from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import plan_build
from vinfer.launch.fit import planned_parts

NAMES = ("llama", "llama-dp2-tp2", "qwen3-moe-ep2", "llava-colours")


@pytest.mark.bundles(*NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_close_to_the_bundle(name: str, bundle_of: Callable[[str], Path]) -> None:
    manifest = read_manifest(bundle_of(name))
    model = model_config(name)
    source = resolve_source(model.source)
    plan = plan_build(model, source, where="models[0]", platform="cpu", num_devices=4, code_cache=BUNDLES_DIR)
    parts = planned_parts(plan, open_checkpoint(source), where="models[0]")
    one_page = [1] * len(manifest.kv_windows)
    built = manifest.num_bytes_per_device(one_page)
    assert parts.pages.num_bytes(one_page) == built.pop("kv_cache")
    assert parts.by_name["state"] == built["state"]
    assert parts.by_name.get("image_features") == built.get("image_features")
    # A checkpoint does not say which of its weights are an image encoder's.
    weights = built["weights"] + built.get("image_weights", 0)
    assert parts.by_name["weights"] == pytest.approx(weights, rel=0.1)
    assert parts.num_bytes == pytest.approx(sum(built.values()), rel=0.1)

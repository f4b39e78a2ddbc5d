"""A manifest reads back as written; anything else is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from written_bundle import PROGRAM, WEIGHTS, make_manifest

from vinfer.bundle.directory import (
    is_bundle,
    read_manifest,
)
from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    Manifest,
    SlotArray,
    kv_groups,
)
from vinfer.bundle.verification import check_fits, hash_files, verify_files
from vinfer.errors import BundleError


def test_a_manifest_reads_back_as_it_was_written(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest == make_manifest(hash_files(directory))
    assert [type(spec.initial) for spec in manifest.state] == [bool, int, float]
    assert set(manifest.files) == {PROGRAM, WEIGHTS, "tokenizer/tokenizer.json"}
    assert is_bundle(directory)
    verify_files(directory, manifest, weights=True)
    check_fits(directory, manifest, platform="cpu", num_devices=8, versions={"jax": "0.9.2"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flavour": "sweet"}, r"flavour: Extra inputs are not permitted; run vinfer precompile again"),
        ({"mesh": {"dp": "many"}}, r"mesh\.dp: .*; run vinfer precompile again"),
        ({"platform": "abacus"}, r"platform: .*'cpu', 'cuda' or 'tpu'.*; run vinfer precompile again"),
        (
            {"format_version": 99},
            rf"format_version is 99, this vinfer reads {FORMAT_VERSION}: run vinfer precompile again",
        ),
        ({"format_version": None}, r"format_version is None"),
    ],
    ids=str,
)
def test_a_manifest_of_another_kind_is_refused(directory: Path, change: dict[str, Any], message: str) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=re.escape(str(path)) + ": " + message):
        read_manifest(directory)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"format_version"', b"\xff\xfe", b"cut in half"])
def test_a_broken_manifest_is_refused(directory: Path, content: bytes) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes()[:200] if content == b"cut in half" else content)
    with pytest.raises(BundleError, match="run vinfer precompile again"):
        read_manifest(directory)


def test_a_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_bytes_per_device_follow_the_mesh() -> None:
    manifest = make_manifest({})
    assert manifest.num_devices == 8
    # w: 16*8*2 bytes over dp*fsdp*tp = 8, norm: 8*4 bytes on every device; in each dp shard 5 pages of 16*8
    # and 3 of 16*16 bfloat16, over tp; state over dp: 4 bools, 64 int32, 4 float32.
    assert manifest.num_bytes_per_device([5, 3]) == {
        "weights": 256 // 8 + 32,
        "kv_cache": (5 * 256 + 3 * 512) // 4,
        "state": (4 + 256 + 16) // 2,
    }
    assert manifest.num_bytes_per_device([0, 0])["kv_cache"] == 0


def test_every_dp_shard_has_its_own_pages() -> None:
    full, windowed = make_manifest({}).kv_specs([5, 3])
    assert (full.name, full.shape, full.axes, full.initial) == ("k", (10, 16, 8), ("dp", None, "tp"), 0)
    assert (windowed.name, windowed.shape) == ("windowed.k", (6, 16, 16))


def test_the_page_plan_is_of_one_shard_and_one_device() -> None:
    plan = make_manifest({}).page_plan
    assert (plan.page_size, plan.max_model_len, plan.num_slots, plan.max_write_len) == (16, 64, 2, 8)
    assert [(group.window, group.page_bytes) for group in plan.groups] == [(None, 64), (8, 128)]
    assert [group.max_pages for group in plan.groups] == [None, None]


def test_the_page_plan_for_a_gpu_knows_what_its_programs_can_address() -> None:
    plan = make_manifest({}).model_copy(update={"platform": "cuda"}).page_plan
    assert [group.max_pages for group in plan.groups] == [2**32 // 64, 2**32 // 128]


def test_layers_with_one_window_are_one_group_and_full_attention_comes_first() -> None:
    assert kv_groups((128, None, 128, 64)) == (None, 64, 128)
    assert kv_groups((128, 128)) == (128,)
    assert kv_groups((None, None)) == (None,)


def test_a_bundle_from_before_parity_reads_as_unverified(directory: Path) -> None:
    document = json.loads((directory / "manifest.json").read_text())
    del document["parity"]
    (directory / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(directory).parity is None


def test_what_layers_keep_per_slot_is_no_part_of_the_pages() -> None:
    """4 slots of 2 x 8 float32, the 8 split over 4 devices and the slots over 2."""
    paged = make_manifest({})
    slots = SlotArray(name="layers.1.state", shape=(2, 8), dtype="float32", axes=(None, "tp"))
    manifest = paged.model_copy(update={"kv": (paged.kv[0], slots, paged.kv[1])})
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert (paged.keeps_slot_arrays, manifest.keeps_slot_arrays) == (False, True)
    assert manifest.page_plan == paged.page_plan
    k, state, windowed = manifest.kv_specs((3, 2))
    assert (k, windowed) == paged.kv_specs((3, 2))
    assert (state.shape, state.axes, state.initial) == ((4, 2, 8), ("dp", None, "tp"), 0)
    before, after = (each.num_bytes_per_device((3, 2)) for each in (paged, manifest))
    assert after == {**before, "state": before["state"] + 4 * 2 * 8 * 4 // (2 * 4)}

"""The plan as arithmetic: which facts change the bundle key, and what is refused before any real work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from vinfer.bundle.manifest import Platform
from vinfer.bundle.program_table import ProgramTable
from vinfer.checkpoint.family import ModelFacts
from vinfer.checkpoint.rope.facts import RopeFacts, RopeType
from vinfer.checkpoint.source import ResolvedSource
from vinfer.checkpoint.vision import Qwen2VLFacts, VisionFacts
from vinfer.compiler import plan as plan_module
from vinfer.compiler.plan import (
    BuildPlan,
    build_versions,
    check_heads,
    check_model,
    default_model_len,
    plan_build,
    plan_key,
    resolve_mesh,
)
from vinfer.config import ModelConfig, prefill_shapes
from vinfer.errors import ConfigError, DeviceError, VinferError

SOURCE = ResolvedSource("some/model", "hf", Path("some/model"), {"hub": "some/model", "commit": "abc"})
BASE: dict[str, Any] = {
    "name": "m",
    "source": "some/model",
    "dtype": "float32",
    "mesh": {"tp": 1},
    "max_model_len": 1024,
    "num_slots": 4,
    "streaming_chunks": 4,
    "precompile": [{"batch_size": 1, "prefill_length": [64, 256]}],
}


def plan(
    source: ResolvedSource = SOURCE, platform: Platform = "cpu", num_devices: int = 8, **overrides: Any
) -> BuildPlan:
    model = ModelConfig.model_validate({**BASE, **overrides})
    return plan_build(model, source, where="models[0]", platform=platform, num_devices=num_devices)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"mesh": {"tp": 2}},
        {"mesh": {"tp": 1, "dp": 2}},
        {"mesh": {"tp": 1, "fsdp": 2}},
        {"max_model_len": 1000},
        {"num_slots": 5},
        {"streaming_chunks": 5},
        {"prompt_logprobs": True},
        {"embeddings": "mean"},
        {"speculation": {}},
        {"speculation": {"tokens": 5}},
        {"precompile": [{"batch_size": 1, "prefill_length": [64]}]},
        {"precompile": [{"batch_size": [1, 2], "prefill_length": [64, 256]}]},
        {"platform": "cuda"},
        {"source": dataclasses.replace(SOURCE, fingerprint={"hub": "some/model", "commit": "abd"})},
    ],
    ids=str,
)
def test_what_changes_the_programs_or_weights_changes_the_key(change: dict[str, Any]) -> None:
    assert plan(**change).key != plan().key


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"sampling": {"temperature": 0.1, "max_tokens": 7}},
        {"max_queue": 1},
        {"kv_cache": {"pages": 7}},
        {"kv_cache": {"memory_fraction": 0.5}},
        {"prefix_cache": "off"},
        {"max_programs": 4096},
        {"num_devices": 1},
        {"mesh": {"tp": -1}, "num_devices": 1},
        {"source": dataclasses.replace(SOURCE, spec="models/copy", path=Path("models/copy"))},
        {"precompile": [{"batch_size": 1, "prefill_length": [256, 64, 64]}]},
    ],
    ids=str,
)
def test_what_changes_neither_keeps_the_key(change: dict[str, Any]) -> None:
    assert plan(**change).key == plan().key


@pytest.mark.parametrize("name", ["jax", "jaxlib", "easydel"])
def test_another_version_changes_the_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan().key
    versions = build_versions()
    assert name in versions
    monkeypatch.setattr(plan_module, "build_versions", lambda: {**versions, name: "0.0.1"})
    assert plan().key != before


def test_other_build_code_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan().key
    monkeypatch.setattr(plan_module, "code_hash", lambda _: "other code")
    assert plan().key != before


@pytest.mark.parametrize(
    ("mesh", "num_devices", "expected"),
    [
        ({"tp": -1}, 8, {"tp": 8}),
        ({"tp": -1}, 1, {"tp": 1}),
        ({"tp": -1, "dp": 2}, 8, {"tp": 4, "dp": 2}),
        ({"tp": 2}, 8, {"tp": 2}),
        ({"tp": 2, "dp": 2, "fsdp": 2}, 8, {"tp": 2, "dp": 2, "fsdp": 2}),
    ],
    ids=str,
)
def test_mesh_takes_the_devices_it_names(
    mesh: dict[str, int], num_devices: int, expected: dict[str, int]
) -> None:
    model = ModelConfig.model_validate({**BASE, "mesh": mesh})
    whole = {"dp": 1, "fsdp": 1, "ep": 1, "tp": 1, "sp": 1}
    assert resolve_mesh(model, where="models[0]", num_devices=num_devices) == whole | expected


REFUSALS: list[tuple[dict[str, Any], type[VinferError], list[str]]] = [
    ({"task": "image-text"}, ConfigError, ["models[0].task is image-text", "no vision shape", "add"]),
    (
        {"task": "text", "precompile": [{"vision": {"height": 8, "width": 8}}]},
        ConfigError,
        ["models[0].precompile has vision shapes", "remove them"],
    ),
    ({"max_programs": 6}, ConfigError, ["needs 7 programs", "models[0].max_programs is 6", "fewer"]),
    ({"mesh": {"tp": 9}}, DeviceError, ["tp=9", "needs 9 devices", "this machine has 8", "cpu:9"]),
    ({"mesh": {"tp": 3, "dp": 4}}, DeviceError, ["dp=4 tp=3", "needs 12 devices", "this machine has 8"]),
    ({"mesh": {"tp": -1, "dp": 2}, "num_devices": 3}, DeviceError, ["a multiple of 2", "this machine has 3"]),
]


@pytest.mark.parametrize(("change", "kind", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_cannot_be_built_is_refused_in_words(
    change: dict[str, Any], kind: type[VinferError], words: list[str]
) -> None:
    with pytest.raises(kind) as raised:
        plan(**change)
    assert [word for word in words if word not in raised.value.message] == []


def test_as_many_programs_as_allowed_are_planned() -> None:
    # set_slot, copy_page; prefill of 64 and 256, decode of 1, 2 and 4 slots.
    assert len(plan(max_programs=7).programs) == 7
    assert len(plan(prompt_logprobs=True).programs) == 9
    assert len(plan(embeddings="mean").programs) == 9
    assert len(plan(embeddings="mean", prompt_logprobs=True).programs) == 11


def test_a_deterministic_plan_has_one_shape_of_each_kind() -> None:
    kinds = {"prompt_logprobs": True, "embeddings": "mean"}
    one_length = {"precompile": [{"batch_size": 1, "prefill_length": 64}], **kinds}
    single_shape = plan(deterministic=True, **one_length)
    assert {(shape.kind, shape.rows, shape.length) for shape in single_shape.programs} >= {
        ("prefill", 1, 64),
        ("decode", 4, 4),
    }
    assert ProgramTable(single_shape.programs).is_single_shape
    assert not ProgramTable(plan(**one_length).programs).is_single_shape
    assert single_shape.key != plan(**one_length).key
    by_default = ModelConfig.model_validate({"name": "m", "source": "s", "deterministic": True})
    assert [tuple(shape) for shape in prefill_shapes(by_default, None)] == [(1, 256)]


@pytest.mark.parametrize(
    "precompile",
    [
        [{"batch_size": 1, "prefill_length": [64, 256]}],
        [{"batch_size": [1, 2], "prefill_length": 64}],
        [{"batch_size": 2, "prefill_length": 64}],
        [{"batch_size": 1, "prefill_length": 64}, {"batch_size": 1}],
    ],
    ids=str,
)
def test_a_deterministic_model_takes_one_prompt_of_one_length(precompile: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="deterministic is true and allows one prompt of one length"):
        ModelConfig.model_validate({**BASE, "deterministic": True, "precompile": precompile})


def test_each_pooling_has_a_key_of_its_own() -> None:
    """The programs are the same, but the bundle states how they are used."""
    mean, last = plan(embeddings="mean"), plan(embeddings="last")
    assert mean.programs == last.programs
    assert mean.key != last.key


def facts(heads: int, kv_heads: int) -> ModelFacts:
    return ModelFacts(
        num_layers=1,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        key_dim=64,
        value_dim=64,
        hidden_size=heads * 64,
        vocab_size=100,
        num_positions=1024,
        is_tied=False,
        windows=(None,),
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp", "legal"),
    [
        (8, 4, 1, None),
        (8, 4, 2, None),
        (8, 4, 4, None),
        (8, 4, 8, None),
        (8, 2, 4, None),
        (8, 1, 8, None),
        (8, 4, 3, "tp=2"),
        (8, 4, 16, "tp=8"),
        # SmolLM2-135M
        (9, 3, 1, None),
        (9, 3, 3, None),
        (9, 3, 9, None),
        (9, 3, 2, "one device (tp=1)"),
        (9, 3, 4, "tp=3"),
        # 4 divides the heads, but neither divides nor is a multiple of the KV heads.
        (24, 6, 4, "tp=3"),
    ],
)
def test_tp_must_fit_the_heads(heads: int, kv_heads: int, tp: int, legal: str | None) -> None:
    mesh = {"dp": 1, "fsdp": 1, "ep": 1, "tp": tp, "sp": 1}
    if legal is None:
        check_heads(mesh, facts(heads, kv_heads), where="models[0]")
        return
    with pytest.raises(ConfigError) as raised:
        check_heads(mesh, facts(heads, kv_heads), where="models[0]")
    words = [
        f"models[0].mesh.tp is {tp}",
        f"{heads} attention heads",
        f"{kv_heads} KV heads",
        f"nearest legal mesh is {legal}" if legal.startswith("tp") else f"of {legal}",
    ]
    assert [word for word in words if word not in raised.value.message] == []


class PaperCheckpoint:
    """Sizes without weights: 8 heads of 16, 4 KV heads, 3 layers, 1,000,000 parameters."""

    facts = dataclasses.replace(
        facts(8, 4),
        num_layers=3,
        key_dim=16,
        value_dim=16,
        hidden_size=128,
        vocab_size=304,
        num_positions=2048,
        windows=(None,) * 3,
    )
    vision: VisionFacts | None = None

    def tensor_names(self) -> list[str]:
        return ["all"]

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1000, 1000)


def test_ep_splits_only_the_experts() -> None:
    """Attention and embeddings once counted as if ep split them too."""

    class Mixture(PaperCheckpoint):
        def tensor_names(self) -> list[str]:
            return ["model.layers.0.mlp.experts.gate_up_proj", "model.embed_tokens.weight"]

    for mesh, num_weights in (
        ({"tp": 1}, 2_000_000),
        ({"tp": 1, "ep": 4}, 1_250_000),
        ({"tp": 2, "ep": 4}, 625_000),
    ):
        built = plan(mesh=mesh)
        memory = check_model(built, Mixture(), where="models[0]")  # type: ignore[arg-type]
        assert memory.weights_bytes == num_weights * 4


@pytest.mark.parametrize(
    ("overrides", "weights_bytes", "all_pages_bytes"),
    [
        # 4 slots * 1024 positions * 3 layers * 4 heads * 16 * (k and v) * 4 bytes
        ({}, 4_000_000, 6_291_456),
        ({"dtype": "bfloat16"}, 2_000_000, 3_145_728),
        ({"mesh": {"tp": 2}}, 2_000_000, 3_145_728),
        ({"mesh": {"tp": 1, "dp": 2}}, 4_000_000, 3_145_728),
        ({"mesh": {"tp": 1, "fsdp": 4}}, 1_000_000, 6_291_456),
        ({"mesh": {"tp": 2, "dp": 4}}, 2_000_000, 786_432),
        # Every device holds all KV heads if tp is a multiple of them.
        ({"mesh": {"tp": 8}}, 500_000, 6_291_456),
        ({"num_slots": 8}, 4_000_000, 12_582_912),
    ],
    ids=str,
)
def test_memory_of_each_device(overrides: dict[str, Any], weights_bytes: int, all_pages_bytes: int) -> None:
    """The pages are those that all slots can use; a config or the machine may say fewer."""
    built = plan(**overrides)
    memory = check_model(built, PaperCheckpoint(), where="models[0]")  # type: ignore[arg-type]
    assert memory.weights_bytes == weights_bytes
    assert memory.image_features_bytes == 0
    pages = memory.pages
    assert pages.num_bytes(pages.most_pages()) == all_pages_bytes
    assert (pages.page_size, pages.max_model_len, pages.max_write_len) == (32, 1024, 256)
    assert pages.num_slots == built.num_slots // built.mesh["dp"]


def test_layers_with_a_window_have_pages_of_their_own() -> None:
    checkpoint: Any = PaperCheckpoint()
    checkpoint.facts = dataclasses.replace(PaperCheckpoint.facts, windows=(100, None, 100))
    pages = check_model(plan(), checkpoint, where="models[0]").pages
    # 32 positions * 4 heads * 16 * (k and v) * 4 bytes * layers of the group
    assert [(group.window, group.page_bytes) for group in pages.groups] == [(None, 16_384), (100, 32_768)]
    # A window of 100 and a chunk of 256 positions lie in 13 pages at most.
    assert pages.most_pages() == (4 * 32, 4 * 13)


def test_programs_for_a_gpu_limit_the_pages_of_an_array() -> None:
    pages = check_model(plan(platform="cuda"), PaperCheckpoint(), where="models[0]").pages  # type: ignore[arg-type]
    # 128 positions * 4 heads * 16 * 4 bytes
    assert [group.max_pages for group in pages.groups] == [2**32 // 32_768]


@pytest.mark.parametrize(
    ("windows", "num_bytes"),
    [
        # 64 pages of 128 positions * 2 bytes * 256 * (k and v) in each of 18 layers
        ([None] * 18, 150_994_944),
        # The same in 3 layers; 13 pages hold a window of 512 and a chunk of 1024 in the other 15.
        ([*[512] * 5, None] * 3, 25_165_824 + 25_559_040),
    ],
    ids=["without windows", "with windows"],
)
def test_kv_cache_of_gemma_3_270m_at_8192_tokens(windows: list[int | None], num_bytes: int) -> None:
    """The figures of docs/design/kv-cache.md."""
    checkpoint: Any = PaperCheckpoint()
    checkpoint.facts = dataclasses.replace(
        facts(4, 1), num_layers=18, key_dim=256, value_dim=256, num_positions=32_768, windows=tuple(windows)
    )
    built = plan(platform="tpu", dtype="bfloat16", max_model_len=8192, precompile=[{}])
    pages = check_model(built, checkpoint, where="models[0]").pages
    assert pages.num_bytes(pages.least_pages()) == num_bytes
    document = (Path(__file__).parents[2] / "docs/design/kv-cache.md").read_text()
    assert f"{num_bytes / 1e6:.0f} MB" in document


@pytest.mark.parametrize(("platform", "page_size"), [("cpu", 32), ("cuda", 128), ("tpu", 128)])
def test_pages_are_as_large_as_the_platform_wants_them(platform: Platform, page_size: int) -> None:
    assert plan(platform=platform).page_size == page_size


def test_more_positions_than_the_model_knows_are_refused() -> None:
    checkpoint: Any = PaperCheckpoint()
    check_model(plan(max_model_len=2048), checkpoint, where="models[0]")
    with pytest.raises(ConfigError, match=r"models\[0\].max_model_len is 2049; .* 2048 positions: lower"):
        check_model(plan(max_model_len=2049), checkpoint, where="models[0]")


def extended(rope_type: RopeType, original: int) -> RopeFacts:
    return RopeFacts(
        theta=10_000.0, rotary_dim=16, rope_type=rope_type, original_max_position_embeddings=original
    )


@pytest.mark.parametrize(
    ("ropes", "expected"),
    [
        ([], 2048),
        (["default"], 2048),
        # These are the same for every limit.
        (["yarn"], 2048),
        (["llama3", "linear"], 2048),
        (["longrope"], 512),
        (["default", "dynamic"], 512),
    ],
    ids=str,
)
def test_the_default_length_changes_no_short_prompt(ropes: list[RopeType], expected: int) -> None:
    checkpoint: Any = PaperCheckpoint()
    checkpoint.ropes = {str(place): extended(rope_type, 512) for place, rope_type in enumerate(ropes)}
    assert default_model_len(checkpoint) == expected


def test_a_length_that_is_not_stated_is_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint: Any = PaperCheckpoint()
    checkpoint.ropes = {"full": extended("longrope", 300)}
    unstated: dict[str, Any] = {"max_model_len": None, "precompile": [{}]}
    # The key needs no look at the checkpoint, which takes a second for a GGUF file.
    model = ModelConfig.model_validate({**BASE, **unstated})
    key = plan_key(model, SOURCE, where="models[0]", platform="cpu", num_devices=8)
    monkeypatch.setattr(plan_module, "open_checkpoint", lambda _: checkpoint)
    built = plan(**unstated)
    assert (built.key, built.max_model_len) == (key, 300)
    assert key != plan(max_model_len=300, precompile=[{}]).key
    assert [shape.length for shape in built.programs if shape.kind == "prefill"] == [64, 256, 300]
    assert plan(max_model_len=300, precompile=[{}]).programs == built.programs
    message = (
        r"models\[0\].precompile\[1\].prefill_length\[0\] is 301; .* is 300: lower it or set max_model_len"
    )
    with pytest.raises(ConfigError, match=message):
        plan(max_model_len=None, precompile=[{}, {"prefill_length": 301}])


IMAGES = {"task": "image-text", "precompile": [{"vision": {"height": 28, "width": 28}}]}


def with_images(side: int, *, num_features: int = 9, attends_both_ways: bool = False) -> Any:
    """Return a checkpoint whose images are squares; only their shape and number matter."""
    checkpoint: Any = PaperCheckpoint()
    encoder: Any = SimpleNamespace(
        max_features=lambda image: num_features,
        nearest_shape=lambda image: (3, side, side),
        shape_words=f"3x{side}x{side}",
    )
    checkpoint.vision = VisionFacts(
        decoder_type="llama",
        encoder=encoder,
        image_token_id=7,
        image_shape=(3, side, side),
        read_processing=lambda _: pytest.fail("not read"),
        attends_both_ways=attends_both_ways,
    )
    return checkpoint


def test_images_of_another_size_are_refused_with_the_right_one() -> None:
    check_model(plan(**IMAGES), with_images(28), where="models[0]")
    with pytest.raises(ConfigError, match=r"of 3x28x28; the model takes images of 3x336x336: write vision"):
        check_model(plan(**IMAGES), with_images(336), where="models[0]")
    with pytest.raises(ConfigError, match=r"the checkpoint takes no images: set task: text"):
        check_model(plan(**IMAGES), PaperCheckpoint(), where="models[0]")  # type: ignore[arg-type]
    # The same checkpoint can serve text.
    check_model(plan(), with_images(336), where="models[0]")


def test_a_shape_for_images_of_many_sizes_has_sides_that_their_patches_fill() -> None:
    checkpoint: Any = PaperCheckpoint()
    encoder = Qwen2VLFacts(
        num_layers=1,
        num_heads=2,
        hidden_size=16,
        inner_size=32,
        num_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        activation="quick_gelu",
        out_size=128,
        full_layers=(0,),
    )
    checkpoint.vision = dataclasses.replace(with_images(28).vision, encoder=encoder, image_shape=None)

    def shaped(**vision: int) -> BuildPlan:
        return plan(task="image-text", precompile=[{"vision": vision}])

    check_model(shaped(height=56, width=280), checkpoint, where="models[0]")
    message = r"of 3x56x300; .* multiples of 28: write vision: {channels: 3, height: 56, width: 308}"
    with pytest.raises(ConfigError, match=message):
        check_model(shaped(height=56, width=300), checkpoint, where="models[0]")
    with pytest.raises(ConfigError, match=r"of 3x13x28; .* write vision: {channels: 3, height: 28, "):
        check_model(shaped(height=13, width=28), checkpoint, where="models[0]")


def test_a_chunk_must_hold_an_image_that_is_seen_both_ways() -> None:
    built = plan(task="image-text", precompile=[{"prefill_length": [32, 64]}, *IMAGES["precompile"]])
    longest = max(shape.length for shape in built.programs if shape.kind == "prefill")
    fitting = with_images(28, num_features=longest, attends_both_ways=True)
    check_model(built, fitting, where="models[0]")
    check_model(built, with_images(28, num_features=longest + 1), where="models[0]")
    too_large = with_images(28, num_features=longest + 1, attends_both_ways=True)
    with pytest.raises(ConfigError, match=rf"is {longest}, but .*{longest + 1} tokens of an image.*: add a"):
        check_model(built, too_large, where="models[0]")


@pytest.mark.parametrize(
    ("image_cache_bytes", "expected"), [(1, 1024 * 128 * 4), (2**20, 2**20), (2**20 + 511, 2**20)]
)
def test_features_take_what_the_config_says_and_at_least_the_longest_prompt(
    image_cache_bytes: int, expected: int
) -> None:
    built = plan(**IMAGES, image_cache_bytes=image_cache_bytes)
    memory = check_model(built, with_images(28), where="models[0]")
    assert memory.image_features_bytes == expected


def test_an_encoder_per_vision_shape() -> None:
    shapes = [{"batch_size": rows, "height": 28, "width": 28} for rows in (4, 1)]
    built = plan(task="image-text", precompile=[{"vision": shapes}])
    names = [shape.name for shape in built.programs if shape.kind == "encode_images"]
    assert names == ["encode_images[1,3,28,28]", "encode_images[4,3,28,28]"]

"""Turns one model's config into a build plan: mesh, programs, memory and the bundle key.

Arithmetic only: no JAX, no EasyDeL. The key follows from the config, the source's file sizes and our own
code; only a plan without `max_model_len` reads the checkpoint's configuration. Illegal meshes are rejected
here, with a clear message, before any expensive work.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path

from vinfer.bundle.directory import bundle_key
from vinfer.bundle.kv_pages import PageGroup, PagePlan, addressable_pages
from vinfer.bundle.manifest import FORMAT_VERSION, MESH_AXES, Platform, Pooling, kv_groups, mesh_words
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.family import ModelFacts
from vinfer.checkpoint.source import ResolvedSource
from vinfer.checkpoint.vision import VisionFacts
from vinfer.compiler.code_hash import code_hash
from vinfer.config import (
    ALL_REMAINING_DEVICES,
    ModelConfig,
    prefill_shapes,
    slot_buckets,
    vision_shapes,
)
from vinfer.errors import ConfigError, DeviceError

# The version in the build extra; used when EasyDeL is not installed and only a key is needed.
EASYDEL_VERSION = "0.3.0"
IMAGE_TEXT = "image-text"
PAGE_SIZE: dict[Platform, int] = {"cpu": 32, "cuda": 128, "tpu": 128}
"""Positions of a page. Accelerators want whole tiles; on a CPU a small page shares more of a prompt."""
SLOT_GROWTH: dict[Platform, int] = {"cpu": 2, "cuda": 4, "tpu": 4}
"""Factor from one number of decoded slots to the next. On a CPU each padded row costs time; on an accelerator
reading the weights does."""
MAX_VERIFY_ROWS: dict[Platform, int] = {"cpu": 4}
"""Most slots whose drafts are verified together, where there is a limit: on a CPU the tokens of a draft cost
as much as those of more requests."""
_EXPERTS = ".experts."
"""Part of the name of each expert's tensor, in every family."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """Everything the build child needs to know, resolved; JSON-serializable."""

    key: str
    source: str
    task: str
    dtype: str
    mesh: dict[str, int]
    platform: Platform
    num_slots: int
    max_model_len: int
    page_size: int
    programs: tuple[ProgramShape, ...]
    embeddings: Pooling | None
    image_cache_bytes: int = 0
    """Memory for image features; 0 for a model without images."""

    @property
    def takes_images(self) -> bool:
        return self.task == IMAGE_TEXT

    def num_feature_rows(self, hidden_size: int) -> int:
        """Return how many image features the devices hold: at least those of the longest prompt."""
        return max(self.max_model_len, self.image_cache_bytes // (hidden_size * DTYPE_BYTES[self.dtype]))

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device, estimated before any weight is read; assumes that the mesh also splits norms.

    Attributes:
        pages: from which the number of pages of the KV cache follows.
    """

    weights_bytes: int
    pages: PagePlan
    image_features_bytes: int = 0


def plan_build(
    model: ModelConfig,
    source: ResolvedSource,
    *,
    where: str,
    platform: Platform,
    num_devices: int,
    code_cache: Path | None = None,
) -> BuildPlan:
    """Resolve one model's config for a platform.

    Args:
        where: the model's place in the config, such as `models[0]`, for messages.
        code_cache: see `code_hash`.

    Raises:
        CheckpointError: `max_model_len` is not stated, and the checkpoint cannot be read.
        ConfigError: task and vision shapes that contradict each other, more programs than max_programs, or a
            prefill length beyond the checkpoint's positions.
        DeviceError: a mesh that needs more devices than are available.
    """
    key = plan_key(
        model, source, where=where, platform=platform, num_devices=num_devices, code_cache=code_cache
    )
    mesh = resolve_mesh(model, where=where, num_devices=num_devices)
    max_model_len = model.max_model_len
    if max_model_len is None:
        max_model_len = default_model_len(open_checkpoint(source))
        _check_prefill_lengths(model, max_model_len, where=where)
    return BuildPlan(
        key=key,
        source=source.spec,
        task=model.task,
        dtype=model.dtype,
        mesh=mesh,
        platform=platform,
        num_slots=model.num_slots,
        max_model_len=max_model_len,
        page_size=PAGE_SIZE[platform],
        programs=_plan_programs(model, max_model_len, platform=platform, dp=mesh["dp"], where=where),
        embeddings=model.embeddings,
        image_cache_bytes=model.image_cache_bytes if model.task == IMAGE_TEXT else 0,
    )


def plan_key(
    model: ModelConfig,
    source: ResolvedSource,
    *,
    where: str,
    platform: Platform,
    num_devices: int,
    code_cache: Path | None = None,
) -> str:
    """Return the key of what `plan_build` plans, without a look inside the source.

    Raises:
        ConfigError, DeviceError: see `plan_build`.
    """
    _check_task(model, where=where)
    mesh = resolve_mesh(model, where=where, num_devices=num_devices)
    programs = _plan_programs(model, model.max_model_len, platform=platform, dp=mesh["dp"], where=where)
    facts = {
        "format": FORMAT_VERSION,
        "code": code_hash(code_cache),
        "versions": build_versions(),
        "source": source.fingerprint,
        "task": model.task,
        "dtype": model.dtype,
        "mesh": mesh,
        "platform": platform,
        "num_slots": model.num_slots,
        # If not stated, it follows from the source and our code.
        "max_model_len": model.max_model_len,
        "page_size": PAGE_SIZE[platform],
        "programs": [shape.model_dump() for shape in programs],
        "embeddings": model.embeddings,
    }
    if model.task == IMAGE_TEXT:
        facts["image_cache_bytes"] = model.image_cache_bytes
    return bundle_key(facts)


def default_model_len(checkpoint: Checkpoint) -> int:
    """Return the longest request of a model whose config does not say: no prompt changes because of it.

    A higher limit would change the frequencies of some rope types for prompts of every length.
    """
    lengths = [rope.max_unextended_len for rope in checkpoint.ropes.values()]
    return min([checkpoint.facts.num_positions, *(length for length in lengths if length is not None)])


def _check_prefill_lengths(model: ModelConfig, max_model_len: int, *, where: str) -> None:
    for i, shapes in enumerate(model.precompile):
        for j, length in enumerate(shapes.prefill_length or ()):
            if length > max_model_len:
                raise ConfigError(
                    f"{where}.precompile[{i}].prefill_length[{j}] is {length}; max_model_len is not set and "
                    f"the checkpoint's is {max_model_len}: lower it or set max_model_len"
                )


def _check_task(model: ModelConfig, *, where: str) -> None:
    vision = vision_shapes(model)
    if vision and model.task != IMAGE_TEXT:
        raise ConfigError(
            f"{where}.precompile has vision shapes; {where}.task is {model.task}: set task: {IMAGE_TEXT}, "
            "or remove them"
        )
    if not vision and model.task == IMAGE_TEXT:
        raise ConfigError(
            f"{where}.task is {IMAGE_TEXT}, but {where}.precompile has no vision shape: add "
            "vision: {height: 336, width: 336}, the size that the checkpoint's processor produces"
        )


def _plan_programs(
    model: ModelConfig, max_model_len: int | None, *, platform: Platform, dp: int, where: str
) -> tuple[ProgramShape, ...]:
    # A sum over fewer rows, or of a shorter cache, may round differently, so there is one shape of each kind.
    is_single_shape = model.deterministic
    buckets = slot_buckets(model.num_slots, dp, growth=SLOT_GROWTH[platform])
    programs = plan_programs(
        prefill_shapes=[(shape.batch_size, shape.length) for shape in prefill_shapes(model, max_model_len)],
        slot_buckets=(model.num_slots,) if is_single_shape else buckets,
        steps=model.streaming_chunks,
        prompt_logprobs=model.prompt_logprobs,
        embeddings=model.embeddings is not None,
        vision_shapes=vision_shapes(model),
        verify_buckets=_verify_buckets(model, platform),
        draft_tokens=0 if model.speculation is None else model.speculation.tokens,
    )
    if len(programs) > model.max_programs:
        raise ConfigError(
            f"{where} needs {len(programs)} programs; {where}.max_programs is {model.max_programs}: "
            "list fewer prefill_length or batch_size, remove prompt_logprobs, "
            "embeddings or speculation, or raise max_programs"
        )
    return programs


def _verify_buckets(model: ModelConfig, platform: Platform) -> tuple[int, ...]:
    if model.speculation is None:
        return ()
    most = min(model.num_slots, MAX_VERIFY_ROWS.get(platform, model.num_slots))
    # Rows are gathered, so that dp splits none.
    return slot_buckets(most, dp=1, growth=SLOT_GROWTH[platform])


def resolve_mesh(model: ModelConfig, *, where: str, num_devices: int) -> dict[str, int]:
    """Return the size of every mesh axis; `tp: -1` uses all devices that the other axes leave.

    Raises:
        DeviceError: too few devices, or a number of devices that the other axes do not divide.
    """
    sizes = {axis: int(getattr(model.mesh, axis)) for axis in MESH_AXES}
    others = math.prod(size for size in sizes.values() if size != ALL_REMAINING_DEVICES)
    if ALL_REMAINING_DEVICES in sizes.values():
        if num_devices % others:
            raise DeviceError(
                f"{where}.mesh needs a multiple of {others} devices; this machine has {num_devices}: "
                "set every axis to a number"
            )
        sizes = {
            axis: num_devices // others if size == ALL_REMAINING_DEVICES else size
            for axis, size in sizes.items()
        }
    if math.prod(sizes.values()) > num_devices:
        raise DeviceError(
            f"{where}.mesh {mesh_words(sizes)} needs {math.prod(sizes.values())} devices; this machine has "
            f"{num_devices}: make the mesh smaller (on a CPU, --devices cpu:{math.prod(sizes.values())} "
            "makes as many)"
        )
    return sizes


def check_model(plan: BuildPlan, checkpoint: Checkpoint, *, where: str) -> MemoryPlan:
    """Check a plan against the checkpoint's sizes and return the memory that it needs.

    Raises:
        ConfigError: the mesh does not divide the heads, a model without a head is not to embed,
            max_model_len exceeds the checkpoint's positions, or the plan's vision shapes do not match the
            model's images.
    """
    facts = checkpoint.facts
    check_heads(plan.mesh, facts, where=where)
    check_images(plan, checkpoint.vision, where=where)
    if not facts.has_head and plan.embeddings is None:
        raise ConfigError(
            f"{where}.source is a decoder without a head, which can only embed: set {where}.embeddings: mean "
            "(or last), or use a checkpoint whose architectures end in ForCausalLM"
        )
    if not facts.has_head and any(shape.kind == "verify" for shape in plan.programs):
        raise ConfigError(
            f"{where}.speculation is set; the checkpoint is a decoder without a head, which generates "
            "nothing: remove speculation"
        )
    if plan.max_model_len > facts.num_positions:
        raise ConfigError(
            f"{where}.max_model_len is {plan.max_model_len}; the checkpoint supports {facts.num_positions} "
            "positions: lower max_model_len"
        )
    size = DTYPE_BYTES[plan.dtype]
    feature_rows = plan.num_feature_rows(facts.hidden_size) if plan.takes_images else 0
    return MemoryPlan(
        _num_weights_per_device(plan, checkpoint) * size,
        page_plan(plan, facts),
        feature_rows * facts.hidden_size * size,
    )


def _num_weights_per_device(plan: BuildPlan, checkpoint: Checkpoint) -> int:
    num_weights = num_parameters(checkpoint)
    num_expert_weights = sum(
        math.prod(checkpoint.tensor_shape(name)) for name in checkpoint.tensor_names() if _EXPERTS in name
    )
    # ep splits nothing else.
    kept = num_weights - num_expert_weights + num_expert_weights // plan.mesh["ep"]
    return kept // math.prod(plan.mesh[axis] for axis in ("fsdp", "tp", "sp"))


def page_plan(plan: BuildPlan, facts: ModelFacts) -> PagePlan:
    """Return the figures of `Manifest.page_plan` before there is a manifest."""
    tp = plan.mesh["tp"]
    num_kv_heads = facts.num_kv_heads // tp if facts.num_kv_heads % tp == 0 else facts.num_kv_heads
    element_bytes = plan.page_size * num_kv_heads * DTYPE_BYTES[plan.dtype]
    max_pages = addressable_pages(plan.platform, element_bytes * max(facts.key_dim, facts.value_dim))
    return PagePlan(
        page_size=plan.page_size,
        max_model_len=plan.max_model_len,
        num_slots=plan.num_slots // plan.mesh["dp"],
        max_write_len=max(shape.length for shape in plan.programs if shape.uses_weights),
        groups=tuple(
            PageGroup(
                window,
                element_bytes * (facts.key_dim + facts.value_dim) * facts.windows.count(window),
                max_pages,
            )
            for window in kv_groups(facts.windows)
        ),
    )


def check_images(plan: BuildPlan, vision: VisionFacts | None, *, where: str) -> None:
    """Reject image-text for a model without images, and vision shapes that do not match its images."""
    if not plan.takes_images:
        return
    if vision is None:
        raise ConfigError(f"{where}.task is {IMAGE_TEXT}; the checkpoint takes no images: set task: text")
    for shape in plan.programs:
        if shape.uses_image_features:
            _check_vision_shape(shape.image, vision, where=where)
    if not vision.attends_both_ways:
        return
    longest = max(shape.length for shape in plan.programs if shape.kind == "prefill")
    num_tokens = max(
        vision.encoder.max_features(shape.image) for shape in plan.programs if shape.uses_image_features
    )
    if longest < num_tokens:
        raise ConfigError(
            f"the longest prefill_length of {where}.precompile is {longest}, but the model must process the "
            f"{num_tokens} tokens of an image in one chunk: add a prefill_length of {num_tokens} or more"
        )


def _check_vision_shape(image: tuple[int, ...], vision: VisionFacts, *, where: str) -> None:
    channels, height, width = nearest = vision.encoder.nearest_shape(image)
    if image != nearest:
        raise ConfigError(
            f"{where}.precompile has a vision shape of {'x'.join(map(str, image))}; the model takes images "
            f"of {vision.encoder.shape_words}: write vision: {{channels: {channels}, height: {height}, "
            f"width: {width}}}"
        )


def check_heads(mesh: Mapping[str, int], facts: ModelFacts, *, where: str) -> None:
    """Reject a tp that splits the attention heads or KV heads in a way that our cache does not support."""
    heads, kv_heads, tp = facts.num_attention_heads, facts.num_kv_heads, mesh["tp"]
    if _is_legal_tp(tp, heads, kv_heads):
        return
    legal = [size for size in range(1, heads + 1) if _is_legal_tp(size, heads, kv_heads)]
    nearest = min(legal, key=lambda size: (abs(size - tp), size))
    raise ConfigError(
        f"{where}.mesh.tp is {tp}; the model has {heads} attention heads and {kv_heads} KV heads: tp must "
        "divide the attention heads, and divide the KV heads or be a multiple of them; "
        f"the nearest legal mesh is {mesh_words({**mesh, 'tp': nearest})} (legal tp: "
        f"{', '.join(map(str, legal))})"
    )


def _is_legal_tp(tp: int, heads: int, kv_heads: int) -> bool:
    return heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)


def build_versions() -> dict[str, str]:
    """Return the versions that a bundle depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    try:
        versions["easydel"] = importlib.metadata.version("easydel")
    except importlib.metadata.PackageNotFoundError:
        versions["easydel"] = EASYDEL_VERSION
    return versions

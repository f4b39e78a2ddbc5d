"""Whether a model fits its devices: what takes memory there, how many pages remain, and what to change.

Before a build, for `vinfer plan`, and with the bundle's exact sizes where there is one. Pure arithmetic over
facts of a checkpoint or a manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vinfer.bundle.kv_pages import PagePlan
from vinfer.bundle.manifest import Manifest
from vinfer.checkpoint.checkpoint import Checkpoint
from vinfer.compiler.plan import BuildPlan, check_model
from vinfer.compiler.state import state_specs
from vinfer.config import ModelConfig
from vinfer.errors import DeviceError, VinferError
from vinfer.launch.kv_memory import DeviceMemory, choose_pages

GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class FixedParts:
    """What a model takes of one device whatever the size of its KV cache, in bytes.

    Attributes:
        by_name: `weights` and `state`, and for images `image_features`, in a bundle also `image_weights`.
        pages: from which the number of pages of the KV cache follows.
    """

    by_name: Mapping[str, int]
    pages: PagePlan

    @property
    def num_bytes(self) -> int:
        return sum(self.by_name.values())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFit:
    """What a model takes of one device.

    Attributes:
        num_pages: pages of each group in one dp shard; empty if not even the weights fit.
        problem: why the model cannot be served like this, and which key to change; None if it can.
    """

    parts: FixedParts
    memory: DeviceMemory
    num_pages: tuple[int, ...]
    problem: VinferError | None

    @property
    def kv_cache_bytes(self) -> int:
        return self.parts.pages.num_bytes(self.num_pages) if self.num_pages else 0

    @property
    def num_bytes(self) -> int:
        return self.parts.num_bytes + self.kv_cache_bytes + self.memory.temporary

    @property
    def max_len(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        return self.parts.pages.max_len(self.num_pages) if self.num_pages else 0

    def num_together(self, length: int) -> int:
        """Return how many requests of a length, prompt and answer, one dp shard runs together."""
        if not self.num_pages or length > self.max_len:
            return 0
        pages = self.parts.pages
        # Only the first group can run out: see `PagePlan.with_pages`.
        needed = min(-(-length // pages.page_size), pages.pages_of_row(pages.groups[0]))
        return min(self.num_pages[0] // needed, pages.num_slots)


def planned_parts(plan: BuildPlan, checkpoint: Checkpoint, *, where: str) -> FixedParts:
    """Check a plan against the checkpoint and return what it takes, before anything is built.

    Raises:
        ConfigError: see `check_model`.
    """
    planned = check_model(plan, checkpoint, where=where)
    facts = checkpoint.facts
    state = state_specs(
        facts.vocab_size,
        plan.max_model_len,
        plan.num_slots,
        has_rope_offset=plan.takes_images and bool(facts.rope_sections),
    )
    # Every device holds a table of float32 per rotary embedding.
    rotary_dims = sum(rope.rotary_dim for rope in checkpoint.ropes.values())
    parts = {
        "weights": planned.weights_bytes + rotary_dims * plan.max_model_len * 4,
        "state": sum(spec.num_bytes_per_device(plan.mesh) for spec in state),
    }
    if plan.takes_images:
        parts["image_features"] = planned.image_features_bytes
    return FixedParts(parts, planned.pages)


def bundle_parts(manifest: Manifest) -> FixedParts:
    """Return what a bundle takes, exactly."""
    sizes = manifest.num_bytes_per_device([0] * len(manifest.kv_windows))
    return FixedParts({name: size for name, size in sizes.items() if name != "kv_cache"}, manifest.page_plan)


def fit_model(
    parts: FixedParts,
    model: ModelConfig,
    memory: DeviceMemory,
    *,
    dp: int,
    where: str,
    stored: Sequence[tuple[int, ...]] = (),
) -> ModelFit:
    """Return what a model takes of each device, with what is wrong with it, if anything is.

    Args:
        memory: of one device; its `weights` are all of the parts.
        where: the model's place in the config, such as `models[0]`, for messages.
        stored: see `choose_pages`.
    """
    total = memory.of_one_device
    if total is not None and memory.weights > total:
        return ModelFit(parts=parts, memory=memory, num_pages=(), problem=_too_large(parts, total, where))
    try:
        num_pages = choose_pages(parts.pages, model, memory, dp=dp, where=where, stored=stored)
    except VinferError as error:
        return ModelFit(parts=parts, memory=memory, num_pages=(), problem=error)
    fit = ModelFit(parts=parts, memory=memory, num_pages=num_pages, problem=None)
    if total is None or fit.num_bytes <= total:
        return fit
    return dataclasses.replace(
        fit,
        problem=DeviceError(
            f"{where} needs {memory.weights / GIB:.2f} GiB of weights, state and image features, "
            f"{fit.kv_cache_bytes / GIB:.2f} GiB of KV cache and {memory.temporary / GIB:.2f} GiB of "
            f"temporary memory per device; a device has {total / GIB:.2f}: lower kv_cache, or raise mesh.tp"
        ),
    )


def _too_large(parts: FixedParts, total: int, where: str) -> DeviceError:
    weights = sum(parts.by_name.get(name, 0) for name in ("weights", "image_weights"))
    return DeviceError(
        f"{where} needs {weights / GIB:.2f} GiB of weights, {parts.by_name['state'] / GIB:.2f} GiB of state "
        f"and {parts.by_name.get('image_features', 0) / GIB:.2f} GiB of image features per device; a device "
        f"has {total / GIB:.2f}: raise mesh.tp, lower num_slots, or use a smaller model or dtype"
    )

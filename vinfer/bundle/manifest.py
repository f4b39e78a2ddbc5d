"""The manifest of a bundle: every array, program and limit that the two halves agree on.

Pure data: file names, shapes and dtypes. `directory` reads and writes it, and `programs` chooses the program
that covers a dispatch. Never imports JAX and never sees an array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.frozen import Frozen
from vinfer.bundle.kv_pages import PageGroup, PagePlan, addressable_pages
from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramShape
from vinfer.image_processing import ImageProcessing

FORMAT_VERSION = 4
MESH_AXES = ("dp", "fsdp", "ep", "tp", "sp")

MAX_STOP_TOKEN_IDS = 16
MAX_LOGIT_BIAS = 300
MAX_TOP_LOGPROBS = 20
MASK_WORD_BITS = 32

Pooling = Literal["mean", "last"]
"""The mean of the hidden states of all tokens of a prompt, or the hidden state of its last token."""
Platform = Literal["cpu", "cuda", "tpu"]
PartitionAxes = tuple[str | tuple[str, ...] | None, ...]


class ArraySpec(Frozen):
    """One array: its name, global shape, dtype name, and how the mesh splits it (a PartitionSpec)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes = ()

    def num_bytes_per_device(self, mesh: Mapping[str, int]) -> int:
        """Return how many bytes of this array one device holds."""
        pieces = math.prod(mesh[name] for axis in self.axes for name in axis_names(axis))
        return math.prod(self.shape) * _dtype_bytes(self.dtype) // pieces


class WeightSpec(ArraySpec):
    file: str


class StateSpec(ArraySpec):
    initial: bool | int | float


class KVArray(Frozen):
    """The k or v of one layer: a pool of pages, whose number is chosen when the bundle is loaded.

    Attributes:
        group: index of the layer's group in `Manifest.kv_windows`.
        width: elements of one position: KV heads times head_dim, or those of one latent.
    """

    name: str
    group: int
    width: int
    dtype: str
    axes: PartitionAxes

    def spec(self, *, num_pages: int, page_size: int) -> StateSpec:
        """Return the array [num_pages, page_size, width], over all devices."""
        shape = (num_pages, page_size, self.width)
        return StateSpec(name=self.name, shape=shape, dtype=self.dtype, axes=self.axes, initial=0)


class SlotArray(Frozen):
    """What a layer keeps of each slot's request instead of pages, such as a recurrent state.

    It is zero before a request's first token. No page of it exists that another request could begin with, so
    nobody finds prefixes in a model with such arrays.

    Attributes:
        shape: of one slot.
        axes: how the mesh splits that shape; slots are split over dp.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes

    def spec(self, *, num_slots: int) -> StateSpec:
        """Return the array [num_slots, *shape]."""
        shape, axes = (num_slots, *self.shape), ("dp", *self.axes)
        return StateSpec(name=self.name, shape=shape, dtype=self.dtype, axes=axes, initial=0)


class ProgramSpec(Frozen):
    shape: ProgramShape
    file: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]


class ModelCard(Frozen):
    """Facts about the model that the API and people need.

    Attributes:
        has_head: false for a bare decoder, whose head is its embedding: it only embeds.
    """

    source: str
    architecture: str
    task: str
    num_parameters: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    vocab_size: int
    sampling_defaults: dict[str, float | int]
    has_head: bool = True


class Embeddings(Frozen):
    """What the embed programs are for.

    Attributes:
        pooling: how a prompt's hidden states become one vector.
        size: length of that vector.
    """

    pooling: Pooling
    size: int


class ImageInput(Frozen):
    """What a model that takes images needs besides its text half.

    Attributes:
        token_id: the placeholder whose embedding a feature replaces.
        processing: how images are prepared, and what stands for one in a prompt.
        weights: the image encoder's weights.
        features: the array that holds the features of all images, [rows, hidden].
        attends_both_ways: each token of an image sees all of its other tokens, so no chunk may split one.
    """

    token_id: int
    processing: ImageProcessing
    weights: tuple[WeightSpec, ...]
    features: StateSpec
    attends_both_ways: bool = False


class Manifest(Frozen):
    format_version: int
    key: str
    created: int
    versions: dict[str, str]
    platform: Platform
    mesh: dict[str, int]
    dtype: str
    num_slots: int
    max_model_len: int
    model: ModelCard
    weights: tuple[WeightSpec, ...]
    page_size: int
    """Positions of one page of the KV cache."""
    kv_windows: tuple[int | None, ...]
    """Groups of layers whose pages are counted together: positions that a token sees in them; None is all."""
    kv: tuple[KVArray | SlotArray, ...]
    """What the layers keep of requests, layer by layer."""
    state: tuple[StateSpec, ...]
    programs: tuple[ProgramSpec, ...]
    images: ImageInput | None = None
    files: dict[str, str]
    """sha256 of every file except the manifest itself and xla/."""
    embeddings: Embeddings | None = None
    """Null if there are no embed programs."""
    parity: ParityReport | None = None
    """Null until the bundle is compared with transformers; part of neither the key nor the hashes."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether there are score programs, so that requests can ask for the prompt's own logprobs."""
        return any(program.shape.kind == "score" for program in self.programs)

    @property
    def max_features(self) -> dict[ProgramShape, int]:
        """The most features of one image, by image encoder."""
        return {
            program.shape: spec.shape[1]
            for program in self.programs
            for spec in program.inputs
            if program.shape.kind == "encode_images" and spec.name == "feature_rows"
        }

    @property
    def is_deterministic(self) -> bool:
        """Whether the programs that a request runs through never depend on other requests."""
        return self.program_table.is_single_shape

    @property
    def program_table(self) -> ProgramTable:
        """What chooses the program of a dispatch."""
        return ProgramTable((program.shape for program in self.programs), self.max_features)

    @property
    def rows_are_slots(self) -> bool:
        """Whether decode programs run all slots in order, because slots are split over dp."""
        return self.mesh["dp"] > 1

    @property
    def page_plan(self) -> PagePlan:
        """The figures from which the number of pages follows."""
        shapes = [program.shape for program in self.programs if program.shape.uses_weights]
        return PagePlan(
            page_size=self.page_size,
            max_model_len=self.max_model_len,
            num_slots=self.num_slots // self.mesh["dp"],
            max_write_len=max(shape.length for shape in shapes),
            groups=tuple(self._page_group(group, window) for group, window in enumerate(self.kv_windows)),
        )

    def _page_group(self, group: int, window: int | None) -> PageGroup:
        page_bytes = [
            array.spec(num_pages=self.mesh["dp"], page_size=self.page_size).num_bytes_per_device(self.mesh)
            for array in self.kv
            if isinstance(array, KVArray) and array.group == group
        ]
        return PageGroup(window, sum(page_bytes), addressable_pages(self.platform, max(page_bytes)))

    @property
    def keeps_slot_arrays(self) -> bool:
        """Whether layers keep something of a request that is not in pages."""
        return any(isinstance(array, SlotArray) for array in self.kv)

    def kv_specs(self, num_pages: Sequence[int]) -> tuple[StateSpec, ...]:
        """Return what the layers keep, with a number of pages of each group in one dp shard."""
        return tuple(
            array.spec(num_slots=self.num_slots)
            if isinstance(array, SlotArray)
            else array.spec(num_pages=num_pages[array.group] * self.mesh["dp"], page_size=self.page_size)
            for array in self.kv
        )

    def num_bytes_per_device(self, num_pages: Sequence[int]) -> dict[str, int]:
        """Return bytes per device: weights, kv_cache and state; with images also those of their parts."""
        in_pages = {array.name for array in self.kv if isinstance(array, KVArray)}
        kept = self.kv_specs(num_pages)
        groups: dict[str, Iterable[ArraySpec]] = {
            "weights": self.weights,
            "kv_cache": [spec for spec in kept if spec.name in in_pages],
            "state": [*self.state, *(spec for spec in kept if spec.name not in in_pages)],
        }
        if self.images is not None:
            groups |= {"image_weights": self.images.weights, "image_features": (self.images.features,)}
        return {
            name: sum(spec.num_bytes_per_device(self.mesh) for spec in specs)
            for name, specs in groups.items()
        }


def argument_specs(
    shape: ProgramShape,
    inputs: Sequence[ArraySpec],
    *,
    weights: Sequence[ArraySpec],
    kv: Sequence[ArraySpec],
    state: Sequence[ArraySpec],
    images: ImageInput | None,
) -> tuple[Sequence[ArraySpec], ...]:
    """Return the specs of a program's four arguments."""
    if shape.uses_image_features:
        assert images is not None
        return images.weights, (images.features,), (), inputs
    return (
        weights if shape.uses_weights else (),
        kv if shape.uses_kv else (),
        state if shape.uses_state else (),
        inputs,
    )


def kv_groups(windows: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return the window of each group of layers: the full layers' None first, then each window once."""
    distinct = dict.fromkeys(windows)
    return tuple(sorted(distinct, key=lambda window: (window is not None, window or 0)))


def num_mask_words(vocab_size: int) -> int:
    """Return the number of uint32 words of a grammar mask: one bit per token, token 0 in the lowest bit."""
    return -(-vocab_size // MASK_WORD_BITS)


def axis_names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axis names of one entry of a PartitionSpec."""
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis


def _dtype_bytes(dtype: str) -> int:
    if dtype == "bool":
        return 1
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) // 8


def mesh_words(mesh: Mapping[str, int]) -> str:
    """Return a mesh in words, such as `dp=2 tp=4`."""
    return " ".join(f"{axis}={mesh[axis]}" for axis in MESH_AXES if mesh[axis] != 1) or "of one device (tp=1)"

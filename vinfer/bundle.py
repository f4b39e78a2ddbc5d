"""The bundle: what the build half writes and the run half reads. The only thing both halves share.

A bundle is a directory:

    manifest.json            this module's `Manifest`
    weights/*.safetensors    in program layout
    programs/*.stablehlo     `jax.export` artefacts
    tokenizer/               tokenizer.json, special_tokens.json, chat_template.jinja
    xla/<platform key>/      compiled code that `vinfer precompile` stored; no part of the manifest

Every program is a pure function over tuples of arrays

    (weights, kv, state, inputs) -> (kv, state, outputs)

with kv and state donated; a program that does not touch one of the groups gets and returns an empty tuple
for it (`ProgramShape.uses_...`). To `encode_images` the weights are those of the image encoder, and the
features of pictures stand in the place of kv. This module knows files, names, shapes and which program covers
a dispatch; it never imports JAX and never sees an array.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pydantic

from vinfer.errors import BundleError
from vinfer.image_processing import ImageProcessing

FORMAT_VERSION = 2
MESH_AXES = ("dp", "fsdp", "ep", "tp", "sp")
MANIFEST = "manifest.json"

MAX_STOP_TOKEN_IDS = 16
MAX_LOGIT_BIAS = 300
MAX_TOP_LOGPROBS = 20
MASK_WORD_BITS = 32

ProgramKind = Literal["set_slot", "copy_slot", "encode_images", "prefill", "score", "embed", "decode"]
Pooling = Literal["mean", "last"]
"""Over the hidden states of all tokens of a prompt, or that of its last one."""
Platform = Literal["cpu", "cuda", "tpu"]
PartitionAxes = tuple[str | tuple[str, ...] | None, ...]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class ArraySpec(_Frozen):
    """One array: its name, global shape, dtype name and how the mesh splits it (a PartitionSpec)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: PartitionAxes = ()

    def num_bytes_per_device(self, mesh: Mapping[str, int]) -> int:
        """Return the bytes that one device holds of this array."""
        pieces = math.prod(mesh[name] for axis in self.axes for name in axis_names(axis))
        return math.prod(self.shape) * _dtype_bytes(self.dtype) // pieces


class WeightSpec(ArraySpec):
    file: str


class StateSpec(ArraySpec):
    initial: bool | int | float


class ProgramShape(_Frozen):
    """What makes one compiled program different from another.

    Attributes:
        rows: prompts of a prefill, score or embed, slots of a decode dispatch, pictures of encode_images; 0
            for set_slot and copy_slot.
        length: padded prompt tokens of a prefill, score or embed, most steps of a decode dispatch; else 0.
        kv_length: rows of the KV cache that attention reads; 0 where there is none.
        image: (channels, height, width) of each picture of encode_images; else empty.
    """

    kind: ProgramKind
    rows: int = 0
    length: int = 0
    kv_length: int = 0
    image: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.rows == 0:
            return self.kind
        sizes = (self.rows, *self.image) if self.image else (self.rows, self.length, self.kv_length)
        return f"{self.kind}[{','.join(map(str, sizes))}]"

    @property
    def uses_weights(self) -> bool:
        return self.kind not in ("set_slot", "copy_slot", "encode_images")

    @property
    def uses_image_features(self) -> bool:
        """Whether it is the image encoder's: with the encoder's weights, and features in the place of kv."""
        return self.kind == "encode_images"

    @property
    def uses_kv(self) -> bool:
        return self.kind not in ("set_slot", "encode_images")

    @property
    def uses_state(self) -> bool:
        return self.kind not in ("copy_slot", "embed", "encode_images")


class ProgramSpec(_Frozen):
    shape: ProgramShape
    file: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]


class ModelCard(_Frozen):
    """What a person and the API want to know of the model."""

    source: str
    architecture: str
    task: str
    num_parameters: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    vocab_size: int
    sampling_defaults: dict[str, float | int]


class Embeddings(_Frozen):
    """What the embed programs are for.

    Attributes:
        pooling: how a prompt's hidden states become one vector.
        size: numbers in that vector.
    """

    pooling: Pooling
    size: int


class ParityFigures(_Frozen):
    """The engine over a bundle against transformers, over all prompts and the tokens of their greedy answers.

    Attributes:
        largest_error, mean_error: of the logprobs of each token and of the twenty best, as fractions of the
            largest absolute logit of the prompt's answer.
        top1_agreement: fraction of tokens at which both have the same most likely token.
        mean_kl, largest_kl: KL divergence of one token's distribution in nats, over the twenty best and one
            bucket for all others: a lower bound of that over the whole vocabulary.
        num_wrong_tokens: greedy tokens that are neither the reference's nor tied with it.
    """

    num_prompts: int
    num_tokens: int
    largest_error: float
    mean_error: float
    top1_agreement: float
    mean_kl: float
    largest_kl: float
    num_wrong_tokens: int


class ParityThresholds(_Frozen):
    """What figures pass; null asks nothing. `tie`: logits this near are equal, in fractions as the errors."""

    max_error: float | None = None
    max_wrong_tokens: int | None = None
    min_top1_agreement: float | None = None
    max_mean_kl: float | None = None
    tie: float


class ParityReport(_Frozen):
    """The bundle compared with transformers: who measured, what, and the verdict.

    Attributes:
        measured: seconds since the epoch.
        dtype, reference_dtype: of the bundle, and of transformers' weights and arithmetic.
    """

    verdict: Literal["passed", "failed"]
    measured: int
    versions: dict[str, str]
    dtype: str
    reference_dtype: str
    figures: ParityFigures
    thresholds: ParityThresholds


class ImageInput(_Frozen):
    """What a model that takes pictures needs besides its text half.

    Attributes:
        token_id: the placeholder whose embedding a feature replaces.
        processing: how pictures are prepared, and what stands for one in a prompt.
        weights: of the encoder.
        features: the one array of all pictures' features, [rows, hidden].
        attends_both_ways: each token of a picture sees all others of it, so no chunk may cut one in two.
    """

    token_id: int
    processing: ImageProcessing
    weights: tuple[WeightSpec, ...]
    features: StateSpec
    attends_both_ways: bool = False


class Manifest(_Frozen):
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
    kv: tuple[StateSpec, ...]
    state: tuple[StateSpec, ...]
    programs: tuple[ProgramSpec, ...]
    images: ImageInput | None = None
    files: dict[str, str]
    """sha256 of every file but the manifest itself and xla/."""
    embeddings: Embeddings | None = None
    """Null where there are no embed programs."""
    parity: ParityReport | None = None
    """Null until somebody compares; neither in the key nor in the hashes."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether there are score programs, so that a prompt's own logprobs can be asked for."""
        return any(program.shape.kind == "score" for program in self.programs)

    @property
    def max_features(self) -> dict[ProgramShape, int]:
        """The most features of one picture, of each image encoder."""
        return {
            program.shape: spec.shape[1]
            for program in self.programs
            for spec in program.inputs
            if program.shape.kind == "encode_images" and spec.name == "feature_rows"
        }

    @property
    def is_deterministic(self) -> bool:
        """Whether nothing about a request's programs depends on other requests."""
        return is_pinned(program.shape for program in self.programs)

    @property
    def rows_are_slots(self) -> bool:
        """Whether decode programs run all slots in order, because slots are split over dp."""
        return self.mesh["dp"] > 1

    def num_bytes_per_device(self) -> dict[str, int]:
        """Return bytes on each device: weights, kv_cache and state; with images also their two parts."""
        groups: dict[str, Iterable[ArraySpec]] = {
            "weights": self.weights,
            "kv_cache": self.kv,
            "state": self.state,
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


def num_mask_words(vocab_size: int) -> int:
    """Return the uint32 words of a grammar mask: one bit per token, token 0 in the lowest bit of word 0."""
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


def plan_programs(
    *,
    prefill_shapes: Iterable[tuple[int, int]],
    slot_buckets: Iterable[int],
    steps: int,
    kv_buckets: Iterable[int],
    prompt_logprobs: bool = False,
    embeddings: bool = False,
    vision_shapes: Iterable[tuple[int, int, int, int]] = (),
) -> tuple[ProgramShape, ...]:
    """List the programs that a configuration needs; `choose_program` is total over them.

    Args:
        prefill_shapes: (batch_size, prefill_length) pairs.
        slot_buckets: numbers of slots that one decode dispatch may run.
        steps: most decode steps per dispatch.
        kv_buckets: lengths of the KV cache that attention may read, the last one max_model_len.
        prompt_logprobs: score programs too, of the shortest and of the longest prefill length.
        embeddings: embed programs too, of the shortest and of the longest prefill length, for one prompt and
            for the largest batch where that has these lengths.
        vision_shapes: (batch_size, channels, height, width) of image encoders.
    """
    kv_buckets = sorted(kv_buckets)
    shapes = [ProgramShape(kind="set_slot"), ProgramShape(kind="copy_slot")]
    shapes += [
        ProgramShape(kind="encode_images", rows=rows, image=tuple(image))
        for rows, *image in sorted(vision_shapes)
    ]
    by_batch: dict[int, list[int]] = {1: []}
    for batch, length in sorted(prefill_shapes):
        by_batch.setdefault(batch, []).append(length)
    # One prompt alone must always find a program: every length exists with batch 1.
    by_batch[1] = sorted({length for lengths in by_batch.values() for length in lengths})
    for batch, lengths in sorted(by_batch.items()):
        shapes += _prompt_shapes("prefill", batch, lengths, kv_buckets)
    if prompt_logprobs:
        shapes += _prompt_shapes("score", 1, {by_batch[1][0], by_batch[1][-1]}, kv_buckets)
    if embeddings:
        ends = {by_batch[1][0], by_batch[1][-1]}
        for batch in sorted({1, max(by_batch)}):
            # A length that one prompt alone does not have no batch would ever be put together for.
            shapes += _prompt_shapes("embed", batch, ends & set(by_batch[batch]), kv_buckets)
    shapes += [
        ProgramShape(kind="decode", rows=rows, length=steps, kv_length=kv)
        for rows in sorted(slot_buckets)
        for kv in kv_buckets
    ]
    return tuple(shapes)


def is_pinned(shapes: Iterable[ProgramShape]) -> bool:
    """Say whether there is one shape of each kind, so that every request goes through the same programs."""
    kinds = [shape.kind for shape in shapes]
    return len(kinds) == len(set(kinds))


def _prompt_shapes(
    kind: ProgramKind, rows: int, lengths: Iterable[int], kv_buckets: Sequence[int]
) -> list[ProgramShape]:
    """Combine lengths with every kv_length that a chunk too long for the length before can need."""
    shapes = []
    shorter = 0
    for length in sorted(lengths):
        shapes += [
            ProgramShape(kind=kind, rows=rows, length=length, kv_length=kv)
            for kv in kv_buckets
            if kv > shorter
        ]
        shorter = length
    return shapes


def choose_program(
    shapes: Iterable[ProgramShape], kind: ProgramKind, *, rows: int, length: int, kv_length: int
) -> ProgramShape:
    """Return the cheapest compiled program that covers a dispatch.

    Args:
        rows: prompts or slots of the dispatch.
        length: longest chunk of the dispatch in tokens; 1 for decode.
        kv_length: rows of the KV cache in use when the dispatch ends.
    """
    covering = [
        shape
        for shape in shapes
        if shape.kind == kind
        and shape.rows >= rows
        and shape.length >= length
        and shape.kv_length >= kv_length
    ]
    if not covering:
        raise AssertionError(f"no {kind} program covers rows={rows} length={length} kv_length={kv_length}")
    return min(covering, key=lambda s: (s.rows * s.length, s.kv_length))


def choose_encoder(
    max_features: Mapping[ProgramShape, int], num_features: Sequence[int]
) -> tuple[ProgramShape, int]:
    """Choose the image encoder for the first of the pictures that wait, and how many of them it takes.

    It is one for pictures no larger than the first one needs, as small as takes all that are next and fit.

    Args:
        max_features: of every encoder, the most features of one picture.
        num_features: of each picture, in the order in which they wait.
    """
    most = min(number for number in max_features.values() if number >= num_features[0])
    encoders = sorted((s for s, number in max_features.items() if number == most), key=lambda s: s.rows)
    waiting = len(list(itertools.takewhile(lambda number: number <= most, num_features)))
    shape = next((shape for shape in encoders if shape.rows >= waiting), encoders[-1])
    return shape, min(shape.rows, waiting)


def bundle_key(facts: Mapping[str, object]) -> str:
    """Return the sha256 of everything that changes the contents of a bundle."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `directory`; it takes the place of `directory` where nothing raised.

    The caller holds `build_lock`, so siblings that are there already belong to builds that were killed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        for path in (*scratch.rglob("*"), scratch):
            _sync(path)
        if directory.exists():
            _replace(directory, scratch)
        else:
            scratch.rename(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(directory: Path, new: Path) -> None:
    doomed = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    old = directory.rename(doomed / "bundle")
    try:
        new.rename(directory)
    except OSError:
        old.rename(directory)
        doomed.rmdir()
        raise
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def build_lock(directory: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of one bundle directory, so that two processes never build the same key.

    Args:
        on_wait: called once where another process holds the lock.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of a bundle."""
    (directory / MANIFEST).write_text(_manifest_text(manifest))


def _manifest_text(manifest: Manifest) -> str:
    return manifest.model_dump_json(indent=1) + "\n"


def record_parity(directory: Path, key: str, parity: ParityReport) -> None:
    """Put a parity report into the manifest of a bundle; the rest of it stays as it is.

    Takes the bundle's lock: not to be called while holding `build_lock`.

    Args:
        key: of the bundle that was measured.

    Raises:
        BundleError: another bundle lies there by now.
        OSError: the bundle cannot be written to.
    """
    with build_lock(directory):
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise BundleError(f"bundle {directory} was replaced while it was measured: measure it again")
        new = directory / f".{MANIFEST}.new"
        new.write_text(_manifest_text(manifest.model_copy(update={"parity": parity})))
        _sync(new)
        new.replace(directory / MANIFEST)
        _sync(directory)


def hash_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file under `directory`, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def is_bundle(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        BundleError: no manifest, not JSON, of another format version, or with fields we do not know.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"{directory} is no bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not readable: {error}; run vinfer precompile again") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version is {version}, this vinfer reads {FORMAT_VERSION}: "
            "run vinfer precompile again"
        )
    try:
        return Manifest.model_validate(document)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}; run vinfer precompile again") from None


def verify_files(directory: Path, manifest: Manifest, *, weights: bool) -> None:
    """Check that every file of the bundle is there and has the bytes that were written.

    Args:
        weights: hash the weights too (seconds per GB); else only their presence is checked here, and their
            headers and sizes when they are placed.

    Raises:
        BundleError: a file is missing or changed.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise BundleError(f"bundle {directory} lacks {name}: run vinfer precompile again")
        if name.startswith("weights/") and not weights:
            continue
        if sha256_of(path) != expected:
            raise BundleError(
                f"bundle {directory}: {name} was changed after the build: run vinfer precompile again"
            )


def check_fits(
    directory: Path, manifest: Manifest, *, platform: str, num_devices: int, versions: Mapping[str, str]
) -> None:
    """Check that a bundle was built for this process.

    Args:
        versions: of this process; jax and jaxlib must equal the bundle's.

    Raises:
        BundleError: names the field, both values and the next move.
    """
    facts = [
        ("platform", manifest.platform, platform),
        *((f"versions.{name}", manifest.versions.get(name), version) for name, version in versions.items()),
    ]
    for field, built_for, here in facts:
        if built_for != here:
            raise BundleError(
                f"bundle {directory}: {field} is {built_for}, here it is {here}: "
                "run vinfer precompile on this installation"
            )
    if manifest.num_devices > num_devices:
        raise BundleError(
            f"bundle {directory}: its mesh {mesh_words(manifest.mesh)} needs {manifest.num_devices} "
            f"devices, here are {num_devices}: run vinfer precompile with a smaller mesh"
        )


def mesh_words(mesh: Mapping[str, int]) -> str:
    """Say a mesh in words, such as `dp=2 tp=4`."""
    return " ".join(f"{axis}={mesh[axis]}" for axis in MESH_AXES if mesh[axis] != 1) or "of one device (tp=1)"

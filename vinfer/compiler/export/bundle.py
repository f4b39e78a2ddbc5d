"""Writes a bundle: weights in program layout, programs as StableHLO, the tokenizer, the manifest.

Runs in the build child. Reports progress through a callback; knows nothing of processes or HTTP.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from vinfer.bundle.directory import write_manifest
from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    ArraySpec,
    Embeddings,
    ImageInput,
    KVArray,
    Manifest,
    ModelCard,
    Platform,
    ProgramSpec,
    StateSpec,
    WeightSpec,
    argument_specs,
    kv_groups,
)
from vinfer.bundle.programs import ProgramShape
from vinfer.bundle.progress import Progress
from vinfer.bundle.verification import hash_files
from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters
from vinfer.checkpoint.family import ModelFacts
from vinfer.compiler.decode_kernel import CUSTOM_CALL
from vinfer.compiler.easydel.model import EasyDeLModel
from vinfer.compiler.export.constants import with_hidden_constants
from vinfer.compiler.export.weight_file import num_bytes, write_weight_file
from vinfer.compiler.model import Images
from vinfer.compiler.plan import BuildPlan, page_plan
from vinfer.compiler.programs import Programs
from vinfer.compiler.state import state_specs
from vinfer.compiler.vision.encoders import Encoder, make_encoder
from vinfer.compiler.weights import Weight, in_stored_order
from vinfer.cpu_kernel.calls import TARGETS
from vinfer.errors import BuildError
from vinfer.image_processing import ImageProcessing

WEIGHT_FILE_BYTES = 2 << 30
ATTENTION_BLOCK_LEN: dict[Platform, int] = {"cpu": 128, "cuda": 512, "tpu": 512}
"""Positions that attention reads at once. On a CPU short prompts pay for a whole block."""
KV = ("k", "v")
"""The arrays of each layer, in order."""


def build_bundle(plan: BuildPlan, checkpoint: Checkpoint, directory: Path, progress: Progress) -> Manifest:
    """Write a whole bundle into an empty directory.

    Raises:
        BuildError: the checkpoint does not match the model that EasyDeL builds from its config.
    """
    progress("importing easydel", 0, 1)
    model = _decoder(plan, checkpoint)
    encoder = _encoder(plan, checkpoint)
    encoder_weights = () if encoder is None else encoder.weights
    specs_by_name = _write_weights(
        [*model.weights, *encoder_weights], checkpoint, directory / "weights", progress
    )
    weights = (
        *(specs_by_name[weight.name] for weight in model.weights),
        *_write_ropes(model, checkpoint, directory / "weights"),
    )
    checkpoint.write_tokenizer(directory / "tokenizer")
    num_tokens = _num_tokens(directory / "tokenizer" / "tokenizer.json", model.vocab_size)
    images = None if encoder is None else _image_input(plan, checkpoint, encoder, specs_by_name)
    return _write_programs_and_manifest(
        plan, checkpoint, model, encoder, images, weights, num_tokens, directory, progress
    )


def build_programs(plan: BuildPlan, checkpoint: Checkpoint, directory: Path, progress: Progress) -> Manifest:
    """Write the programs and the manifest of a model, but neither weights nor a tokenizer.

    No server can load the result. It is for looking at compiled programs, and reads no tensor.
    """
    model = _decoder(plan, checkpoint)
    encoder = _encoder(plan, checkpoint)
    encoder_weights = () if encoder is None else encoder.weights
    specs_by_name = {
        weight.name: WeightSpec(
            name=weight.name, shape=weight.shape, dtype=weight.dtype, axes=weight.axes, file=""
        )
        for weight in (*model.weights, *encoder_weights)
    }
    ropes = (
        WeightSpec(
            name=f"rope.{name}",
            shape=(model.max_model_len, checkpoint.ropes[name].rotary_dim),
            dtype="float32",
            file="",
        )
        for name in model.rope_names
    )
    weights = (*(specs_by_name[weight.name] for weight in model.weights), *ropes)
    images = None if encoder is None else _image_input(plan, checkpoint, encoder, specs_by_name)
    return _write_programs_and_manifest(
        plan, checkpoint, model, encoder, images, weights, model.vocab_size, directory, progress
    )


def _write_programs_and_manifest(
    plan: BuildPlan,
    checkpoint: Checkpoint,
    model: EasyDeLModel,
    encoder: Encoder | None,
    images: ImageInput | None,
    weights: tuple[WeightSpec, ...],
    num_tokens: int,
    directory: Path,
    progress: Progress,
) -> Manifest:
    """Write what is left of a bundle once its weights are known."""
    kv = _kv_arrays(model, plan)
    rotates_by_axes = encoder is not None and bool(checkpoint.facts.rope_sections)
    state = state_specs(model.vocab_size, plan.max_model_len, plan.num_slots, has_rope_offset=rotates_by_axes)
    programs = Programs(
        model,
        num_slots=plan.num_slots,
        num_tokens=num_tokens,
        rows_are_slots=plan.mesh["dp"] > 1,
        page_size=plan.page_size,
        kv_groups=[array.group for array in kv],
        num_shards=plan.mesh["dp"],
        images=None
        if encoder is None or images is None
        else Images(encoder, images.features, images.attends_both_ways, rotates_by_axes),
    )

    # Any number of pages will do: programs are exported for all numbers.
    any_pages = [array.spec(num_pages=plan.mesh["dp"], page_size=plan.page_size) for array in kv]

    def arguments(shape: ProgramShape) -> tuple[Sequence[ArraySpec], ...]:
        return argument_specs(
            shape, programs.inputs(shape), weights=weights, kv=any_pages, state=state, images=images
        )

    specs = _write_programs(
        programs, model.facts, arguments, plan, model.mesh, directory / "programs", progress
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        key=plan.key,
        created=int(time.time()),
        versions={name: importlib.metadata.version(name) for name in ("vinfer", "jax", "jaxlib", "easydel")},
        platform=plan.platform,
        mesh=plan.mesh,
        dtype=plan.dtype,
        num_slots=plan.num_slots,
        max_model_len=plan.max_model_len,
        model=_model_card(plan, checkpoint, vocab_size=model.vocab_size),
        weights=weights,
        page_size=plan.page_size,
        kv_windows=kv_groups(checkpoint.facts.windows),
        kv=kv,
        state=state,
        programs=specs,
        images=images,
        files=hash_files(directory),
        embeddings=Embeddings(pooling=plan.embeddings, size=model.hidden_size) if plan.embeddings else None,
    )
    write_manifest(directory, manifest)
    return manifest


def _decoder(plan: BuildPlan, checkpoint: Checkpoint) -> EasyDeLModel:
    vision = checkpoint.vision
    is_one_cpu = plan.platform == "cpu" and plan.num_devices == 1
    return EasyDeLModel(
        model_type=checkpoint.model_type if vision is None else vision.decoder_type,
        config=checkpoint.config,
        facts=checkpoint.facts,
        dtype=plan.dtype,
        mesh=plan.mesh,
        max_model_len=plan.max_model_len,
        attention_block_len=ATTENTION_BLOCK_LEN[plan.platform],
        keeps_weights_in_place=plan.platform != "cpu",
        kernel="cpu" if is_one_cpu else "gpu" if plan.platform == "cuda" else None,
        keeps_linears_as_stored=is_one_cpu,
    )


def _encoder(plan: BuildPlan, checkpoint: Checkpoint) -> Encoder | None:
    """Return the image encoder of the checkpoint; None if the plan takes no images."""
    if not plan.takes_images:
        return None
    assert checkpoint.vision is not None
    return make_encoder(checkpoint.vision.encoder, dtype=plan.dtype, tp=plan.mesh["tp"])


def _image_input(
    plan: BuildPlan, checkpoint: Checkpoint, encoder: Encoder, specs_by_name: Mapping[str, WeightSpec]
) -> ImageInput:
    assert checkpoint.vision is not None
    assert checkpoint.image_processing is not None
    return ImageInput(
        token_id=checkpoint.vision.image_token_id,
        processing=_within_programs(checkpoint.image_processing, plan),
        weights=tuple(specs_by_name[weight.name] for weight in encoder.weights),
        features=_features_spec(plan, encoder.hidden_size),
        attends_both_ways=checkpoint.vision.attends_both_ways,
    )


def _model_card(plan: BuildPlan, checkpoint: Checkpoint, *, vocab_size: int) -> ModelCard:
    generation = checkpoint.generation
    return ModelCard(
        source=plan.source,
        architecture=checkpoint.model_type,
        task=plan.task,
        num_parameters=num_parameters(checkpoint),
        bos_token_id=generation.bos_token_id,
        eos_token_ids=generation.eos_token_ids,
        pad_token_id=generation.pad_token_id,
        vocab_size=vocab_size,
        sampling_defaults=dict(generation.sampling),
        has_head=checkpoint.facts.has_head,
    )


def _write_weights(
    weights: Sequence[Weight], checkpoint: Checkpoint, directory: Path, progress: Progress
) -> dict[str, WeightSpec]:
    """Write weights in the order in which the checkpoint stores them; return their specs by name."""
    directory.mkdir()
    num_written = 0

    def written() -> None:
        nonlocal num_written
        num_written += 1
        progress("converting weights", num_written, len(weights) + 1)

    files: dict[str, str] = {}
    for index, group in enumerate(_grouped(in_stored_order(weights, checkpoint.tensor_names()))):
        file = f"{index:05d}.safetensors"
        files |= {weight.name: file for weight in group}
        write_weight_file(directory / file, group, checkpoint.read, written=written)
    progress("converting weights", len(weights) + 1, len(weights) + 1)
    return {
        weight.name: WeightSpec(
            name=weight.name,
            shape=weight.shape,
            dtype=weight.dtype,
            axes=weight.axes,
            file=files[weight.name],
        )
        for weight in weights
    }


def _write_ropes(model: EasyDeLModel, checkpoint: Checkpoint, directory: Path) -> Iterator[WeightSpec]:
    """Write the rotary tables, which programs take after the weights."""
    tables = {f"rope.{name}": checkpoint.ropes[name].table(model.max_model_len) for name in model.rope_names}
    for name, table in tables.items():
        yield WeightSpec(name=name, shape=table.shape, dtype="float32", file="rope.safetensors")
    if tables:
        save_file(tables, directory / "rope.safetensors")


def _grouped(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    group: list[Weight] = []
    size = 0
    for weight in weights:
        if group and size + num_bytes(weight) > WEIGHT_FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(weight)
        size += num_bytes(weight)
    yield group


def _num_tokens(tokenizer_json: Path, vocab_size: int) -> int:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer_json)).get_vocab(with_added_tokens=True).values()
    if max(ids) >= vocab_size:
        raise BuildError(
            f"the tokenizer has id {max(ids)}; the model's vocab_size is {vocab_size}: "
            "tokenizer and weights belong to different models"
        )
    return max(ids) + 1


def _within_programs(processing: ImageProcessing, plan: BuildPlan) -> ImageProcessing:
    """Limit the processed size of images with many sizes to what the largest encoder accepts."""
    areas = (math.prod(shape.image[1:]) for shape in plan.programs if shape.uses_image_features)
    return processing.with_max_pixels(max(areas))


def _features_spec(plan: BuildPlan, hidden_size: int) -> StateSpec:
    """Describe the array of all images' features: replicated, like the embeddings that it replaces."""
    shape = (plan.num_feature_rows(hidden_size), hidden_size)
    return StateSpec(name="image_features", shape=shape, dtype=plan.dtype, axes=(None, None), initial=0)


def _kv_arrays(model: EasyDeLModel, plan: BuildPlan) -> tuple[KVArray, ...]:
    facts = model.facts
    groups = kv_groups(facts.windows)
    return tuple(
        KVArray(
            name=f"layers.{layer}.{name}",
            group=groups.index(window),
            width=facts.num_kv_heads * dim,
            dtype=plan.dtype,
            axes=model.kv_axes(),
        )
        for layer, window in enumerate(facts.windows)
        for name, dim in zip(KV, (facts.key_dim, facts.value_dim), strict=True)
    )


def _write_programs(
    programs: Programs,
    facts: ModelFacts,
    arguments_of: Callable[[ProgramShape], tuple[Sequence[ArraySpec], ...]],
    plan: BuildPlan,
    mesh: Mesh,
    directory: Path,
    progress: Progress,
) -> tuple[ProgramSpec, ...]:
    directory.mkdir()
    specs = []
    for done, shape in enumerate(plan.programs):
        progress("exporting programs", done, len(plan.programs))
        inputs, outputs = programs.inputs(shape), programs.outputs(shape)
        groups = arguments_of(shape)
        jitted = jax.jit(programs.function(shape), keep_unused=True)
        if plan.num_devices > 1:
            # On one device they have no effect, and take a third of the time to load a program.
            arguments = tuple(_shardings(mesh, group) for group in groups)
            jitted = jax.jit(
                programs.function(shape),
                in_shardings=arguments,
                out_shardings=(arguments[1], arguments[2], _shardings(mesh, outputs)),
                keep_unused=True,
            )
        exported = export.export(
            jitted,
            platforms=[plan.platform],
            disabled_checks=[
                export.DisabledSafetyCheck.custom_call(name) for name in (CUSTOM_CALL, *TARGETS.values())
            ],
        )(*_abstract_arguments(shape, groups, facts, plan))
        if plan.num_devices > 1:
            exported = with_hidden_constants(exported)
        file = shape.name.replace("[", "-").replace("]", "").replace(",", "-") + ".stablehlo"
        (directory / file).write_bytes(exported.serialize())
        specs.append(ProgramSpec(shape=shape, file=file, inputs=inputs, outputs=outputs))
    progress("exporting programs", len(specs), len(specs))
    return tuple(specs)


def _abstract_arguments(
    shape: ProgramShape,
    groups: Sequence[Sequence[ArraySpec]],
    facts: ModelFacts,
    plan: BuildPlan,
) -> tuple[tuple[jax.ShapeDtypeStruct, ...], ...]:
    """Return the shapes of a program's arguments, with a symbol for the number of pages of each group."""
    windows = facts.windows
    weights, kv, state, inputs = (_abstract(group) for group in groups)
    if shape.uses_kv and kv:
        groups_in_order = kv_groups(windows)
        limits = [group.max_pages for group in page_plan(plan, facts).groups]
        pages = export.symbolic_shape(
            ", ".join(f"{plan.mesh['dp']}*pages{place}" for place in range(len(groups_in_order))),
            constraints=[f"pages{place} <= {limit}" for place, limit in enumerate(limits) if limit],
        )
        kv = tuple(
            jax.ShapeDtypeStruct((pages[groups_in_order.index(window)], *array.shape[1:]), array.dtype)
            for window, array in zip([w for w in windows for _ in KV], kv, strict=True)
        )
    return weights, kv, state, inputs


def _abstract(group: Sequence[ArraySpec]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in group)


def _shardings(mesh: Mesh, group: Sequence[ArraySpec]) -> tuple[NamedSharding, ...]:
    return tuple(NamedSharding(mesh, PartitionSpec(*spec.axes)) for spec in group)

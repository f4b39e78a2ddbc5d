"""A bundle that was changed, or was built for something else, is refused with a clear message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from written_bundle import PROGRAM, WEIGHTS, make_manifest

from vinfer.bundle.directory import (
    read_manifest,
    write_manifest,
)
from vinfer.bundle.manifest import (
    Manifest,
    ProgramSpec,
)
from vinfer.bundle.programs import plan_programs
from vinfer.bundle.verification import WeightHashing, check_fits, sha256_of, verify_files
from vinfer.config import ModelConfig
from vinfer.errors import BundleError, ConfigError
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target


def refusal(directory: Path, manifest: Manifest, **here: Any) -> str:
    fits = {"platform": "cpu", "num_devices": 8, "versions": {"jax": "0.9.2", "jaxlib": "0.9.2"}}
    with pytest.raises(BundleError) as caught:
        check_fits(directory, manifest, **{**fits, **here})
    return caught.value.message


@pytest.mark.parametrize("name", [PROGRAM, WEIGHTS, "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(BundleError, match=rf"lacks {re.escape(name)}: run vinfer precompile again"):
        verify_files(directory, read_manifest(directory), weights=False)


@pytest.mark.parametrize("name", [PROGRAM, "tokenizer/tokenizer.json"])
def test_one_changed_byte_is_found(directory: Path, name: str) -> None:
    content = bytearray((directory / name).read_bytes())
    content[-1] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{re.escape(name)} was changed after the build"):
        verify_files(directory, read_manifest(directory), weights=False)


def test_weights_are_hashed_only_on_request(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"weightz")
    manifest = read_manifest(directory)
    verify_files(directory, manifest, weights=False)
    with pytest.raises(BundleError, match=rf"{re.escape(WEIGHTS)} was changed after the build"):
        verify_files(directory, manifest, weights=True)


@pytest.mark.parametrize("change", ["zeros", "one bit", "longer", "missing"])
def test_weights_that_changed_are_found_while_they_are_loaded(directory: Path, change: str) -> None:
    """20 kB of zeros in a file of weights were once served."""
    path = directory / WEIGHTS
    content = bytearray(bytes(range(256)) * 400)
    path.write_bytes(content)
    manifest = read_manifest(directory)
    manifest = manifest.model_copy(update={"files": {**manifest.files, WEIGHTS: sha256_of(path)}})
    hashing = WeightHashing(directory, manifest)
    hashing.check()
    hashing.close()
    if change == "zeros":
        content[30_000:50_000] = bytes(20_000)
    elif change == "one bit":
        content[70_000] ^= 4
    elif change == "longer":
        content += b"x"
    path.write_bytes(content)
    if change == "missing":
        path.unlink()
    hashing = WeightHashing(directory, manifest)
    with pytest.raises(
        BundleError, match=rf"{re.escape(WEIGHTS)} (was changed after the build|cannot be read)"
    ):
        hashing.check()
    hashing.close()


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (
            {"platform": "cuda"},
            "platform is cpu; this process has cuda: run vinfer precompile on this installation",
        ),
        (
            {"versions": {"jax": "0.10.0", "jaxlib": "0.9.2"}},
            "versions.jax is 0.9.2; this process has 0.10.0: run vinfer precompile on this installation",
        ),
        ({"versions": {"jaxlib": "0.9.3"}}, "versions.jaxlib is 0.9.2; this process has 0.9.3: run vinfer"),
        (
            {"num_devices": 4},
            (
                "its mesh dp=2 tp=4 needs 8 devices; this machine has 4: "
                "run vinfer precompile with a smaller mesh"
            ),
        ),
    ],
    ids=str,
)
def test_a_bundle_for_something_else_is_refused_with_both_values(
    directory: Path, here: dict[str, Any], words: str
) -> None:
    message = refusal(directory, read_manifest(directory), **here)
    assert message.startswith(f"bundle {directory}: {words}")


@pytest.mark.parametrize(
    ("stated", "is_refused"),
    [
        ({}, False),
        ({"dtype": "bfloat16", "num_slots": 4, "max_model_len": 64}, False),
        ({"deterministic": False}, False),
        ({"dtype": "float32"}, True),
        ({"num_slots": 8}, True),
        ({"max_model_len": 32}, True),
        ({"embeddings": "mean"}, True),
        ({"deterministic": True}, True),
        ({"speculation": None}, False),
        ({"speculation": {"tokens": 4}}, True),
    ],
)
def test_a_config_must_not_state_what_the_bundle_it_serves_is_not(
    tmp_path: Path, stated: dict[str, object], is_refused: bool
) -> None:
    model = ModelConfig.model_validate({"name": "m", "source": str(tmp_path), **stated})
    shapes = plan_programs(prefill_shapes=[(1, 16)], slot_buckets=[1, 4], steps=4)
    programs = tuple(ProgramSpec(shape=shape, file="", inputs=(), outputs=()) for shape in shapes)
    write_manifest(tmp_path, make_manifest({}).model_copy(update={"programs": programs}))

    def find() -> Path:
        return find_or_build(
            model,
            where="models[0]",
            target=Target(platform="cpu", num_devices=8),
            bundles_dir=tmp_path,
            progress=lambda *_: None,
        ).directory

    if is_refused:
        (field,) = stated
        with pytest.raises(ConfigError, match=rf"models\[0\]\.{field} is .* was built with"):
            find()
    else:
        assert find() == tmp_path

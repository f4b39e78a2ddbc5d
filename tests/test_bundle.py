"""The bundle directory: what is written is what is read, and everything else is refused in words."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vinfer.bundle.certificate import ParityFigures, ParityReport, ParityThresholds
from vinfer.bundle.directory import (
    build_lock,
    bundle_key,
    is_bundle,
    read_manifest,
    record_parity,
    write_manifest,
    writing,
)
from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    ArraySpec,
    Manifest,
    ModelCard,
    ProgramSpec,
    StateSpec,
    WeightSpec,
)
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.bundle.verification import check_fits, hash_files, verify_files
from vinfer.config import ModelConfig
from vinfer.errors import BundleError, ConfigError
from vinfer.launch.bundles import find_or_build

MESH = {"dp": 2, "fsdp": 1, "ep": 1, "tp": 4, "sp": 1}
PROGRAM = "programs/set_slot.stablehlo"
WEIGHTS = "weights/0.safetensors"


def make_manifest(files: dict[str, str]) -> Manifest:
    tokens = ArraySpec(name="tokens", shape=(8, 4), dtype="int32")
    return Manifest(
        format_version=FORMAT_VERSION,
        key="0" * 64,
        created=1_700_000_000,
        versions={"jax": "0.9.2", "jaxlib": "0.9.2", "easydel": "0.3.0"},
        platform="cpu",
        mesh=MESH,
        dtype="bfloat16",
        num_slots=4,
        max_model_len=64,
        model=ModelCard(
            source="tiny",
            architecture="LlamaForCausalLM",
            task="text",
            num_parameters=1024,
            bos_token_id=None,
            eos_token_ids=(1, 2),
            pad_token_id=0,
            vocab_size=16,
            sampling_defaults={"temperature": 1.0, "top_k": 40},
        ),
        weights=(
            WeightSpec(name="w", shape=(16, 8), dtype="bfloat16", axes=(("dp", "fsdp"), "tp"), file="0"),
            WeightSpec(name="norm", shape=(8,), dtype="float32", file="0"),
        ),
        kv=(
            StateSpec(name="k", shape=(4, 64, 4, 2), dtype="bfloat16", axes=("dp", None, "tp"), initial=0.0),
        ),
        state=(
            StateSpec(name="active", shape=(4,), dtype="bool", axes=("dp",), initial=False),
            StateSpec(name="stop_ids", shape=(4, 16), dtype="int32", axes=("dp", None), initial=-1),
            StateSpec(name="top_p", shape=(4,), dtype="float32", axes=("dp",), initial=1.0),
        ),
        programs=(
            ProgramSpec(
                shape=ProgramShape(kind="decode", rows=4, length=8, kv_length=64),
                file=PROGRAM,
                inputs=(ArraySpec(name="slots", shape=(4,), dtype="int32"),),
                outputs=(tokens,),
            ),
        ),
        files=files,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small bundle on disk."""
    path = tmp_path / "tiny"
    for name, content in ((PROGRAM, b"program"), (WEIGHTS, b"weights"), ("tokenizer/tokenizer.json", b"{}")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_manifest(path, make_manifest(hash_files(path)))
    return path


def refusal(directory: Path, manifest: Manifest, **here: Any) -> str:
    fits = {"platform": "cpu", "num_devices": 8, "versions": {"jax": "0.9.2", "jaxlib": "0.9.2"}}
    with pytest.raises(BundleError) as caught:
        check_fits(directory, manifest, **{**fits, **here})
    return caught.value.message


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
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        read_manifest(tmp_path)


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


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (
            {"platform": "cuda"},
            "platform is cpu, here it is cuda: run vinfer precompile on this installation",
        ),
        (
            {"versions": {"jax": "0.10.0", "jaxlib": "0.9.2"}},
            "versions.jax is 0.9.2, here it is 0.10.0: run vinfer precompile on this installation",
        ),
        ({"versions": {"jaxlib": "0.9.3"}}, "versions.jaxlib is 0.9.2, here it is 0.9.3: run vinfer"),
        (
            {"num_devices": 4},
            "its mesh dp=2 tp=4 needs 8 devices, here are 4: run vinfer precompile with a smaller mesh",
        ),
    ],
    ids=str,
)
def test_a_bundle_for_something_else_is_refused_with_both_values(
    directory: Path, here: dict[str, Any], words: str
) -> None:
    message = refusal(directory, read_manifest(directory), **here)
    assert message.startswith(f"bundle {directory}: {words}")


def test_bytes_per_device_follow_the_mesh() -> None:
    manifest = make_manifest({})
    assert manifest.num_devices == 8
    # w: 16*8*2 bytes over dp*fsdp*tp = 8, norm: 8*4 bytes on every device; k: 4*64*4*2 bfloat16 over dp*tp;
    # state over dp: 4 bools, 64 int32, 4 float32.
    assert manifest.num_bytes_per_device() == {
        "weights": 256 // 8 + 32,
        "kv_cache": 4096 // 8,
        "state": (4 + 256 + 16) // 2,
    }


def test_a_bundle_key_changes_with_every_fact_and_not_with_their_order() -> None:
    facts: dict[str, object] = {
        "format": 1,
        "dtype": "float32",
        "mesh": {"dp": 1, "tp": 2},
        "source": [["model.safetensors", 10, 20]],
        "programs": [ProgramShape(kind="decode", rows=1).model_dump()],
    }
    changes: list[dict[str, object]] = [
        {"format": 2},
        {"dtype": "bfloat16"},
        {"mesh": {"dp": 2, "tp": 1}},
        {"source": [["model.safetensors", 10, 21]]},
        {"programs": [ProgramShape(kind="decode", rows=2).model_dump()]},
        {"task": "text"},
    ]
    keys = [bundle_key(facts), *(bundle_key({**facts, **change}) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert bundle_key(dict(reversed(facts.items()))) == keys[0]
    assert re.fullmatch("[0-9a-f]{64}", keys[0])


def test_programs_are_listed_with_every_length_for_one_prompt_and_no_useless_cache_length() -> None:
    shapes = plan_programs(
        prefill_shapes=[(4, 256), (1, 64), (1, 1024)], slot_buckets=[4, 1], steps=8, kv_buckets=[1024, 256]
    )
    assert [shape.name for shape in shapes] == [
        "set_slot",
        "copy_slot",
        "prefill[1,64,256]",
        "prefill[1,64,1024]",
        "prefill[1,256,256]",
        "prefill[1,256,1024]",
        "prefill[1,1024,1024]",  # with 256 rows or fewer in use a shorter program does
        "prefill[4,256,256]",
        "prefill[4,256,1024]",
        "decode[1,8,256]",
        "decode[1,8,1024]",
        "decode[4,8,256]",
        "decode[4,8,1024]",
    ]


def test_prompts_are_scored_by_the_shortest_and_the_longest_length_and_one_prompt_at_a_time() -> None:
    kinds: dict[str, Any] = {"slot_buckets": [1], "steps": 8, "kv_buckets": [256, 1024]}
    plain = plan_programs(prefill_shapes=[(4, 256), (1, 64), (1, 1024)], **kinds)
    shapes = plan_programs(prefill_shapes=[(4, 256), (1, 64), (1, 1024)], prompt_logprobs=True, **kinds)
    assert [shape.name for shape in shapes if shape not in plain] == [
        "score[1,64,256]",
        "score[1,64,1024]",
        "score[1,1024,256]",
        "score[1,1024,1024]",
    ]
    one_length = plan_programs(prefill_shapes=[(2, 64)], prompt_logprobs=True, **kinds)
    scores = [shape.name for shape in one_length if shape.kind == "score"]
    assert scores == ["score[1,64,256]", "score[1,64,1024]"]


def test_prompts_are_embedded_by_the_shortest_and_the_longest_length_alone_and_in_the_largest_batch() -> None:
    kinds: dict[str, Any] = {"slot_buckets": [1], "steps": 8, "kv_buckets": [256, 1024]}

    def embeds(*prefill_shapes: tuple[int, int]) -> list[str]:
        shapes = plan_programs(prefill_shapes=prefill_shapes, embeddings=True, **kinds)
        return [shape.name for shape in shapes if shape.kind == "embed"]

    alone = ["embed[1,64,256]", "embed[1,64,1024]", "embed[1,1024,256]", "embed[1,1024,1024]"]
    assert embeds((1, 64), (1, 256), (1, 1024)) == alone
    assert embeds((1, 64), (2, 64), (4, 64), (1, 1024)) == [*alone, "embed[4,64,256]", "embed[4,64,1024]"]
    # A batch is put together of chunks that alone would have that length.
    assert embeds((1, 64), (4, 256), (1, 1024)) == alone


def test_a_bundle_appears_whole_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "tiny"
    for content in ("first", "second"):
        with writing(target) as scratch:
            assert scratch.parent == target.parent
            assert not target.exists() or (target / "file").read_text() == "first"
            (scratch / "file").write_text(content)
        assert (target / "file").read_text() == content
        assert [path.name for path in target.parent.iterdir()] == ["tiny"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("has_old", [False, True])
def test_a_crash_while_writing_leaves_what_was_there(tmp_path: Path, has_old: bool) -> None:
    target = tmp_path / "tiny"
    if has_old:
        target.mkdir()
        (target / "file").write_text("old")

    def write_half() -> None:
        with writing(target) as scratch:
            (scratch / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == (["tiny"] if has_old else [])
    if has_old:
        assert (target / "file").read_text() == "old"


def test_a_bundle_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tiny"
    target.mkdir()
    (target / "file").write_text("old")
    rename = Path.rename

    def fail_for_the_new_one(self: Path, to: Path) -> Path:
        if (self / "is_new").exists():
            raise OSError("no space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no space left"), writing(target) as scratch:
        (scratch / "is_new").touch()
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_every_file_and_directory_of_a_bundle_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that outlives a power cut must not stand beside empty weights: those are not hashed."""
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with writing(tmp_path / "tiny") as scratch:
        (scratch / "weights").mkdir()
        (scratch / WEIGHTS).write_bytes(b"weights")
        write_manifest(scratch, make_manifest(hash_files(scratch)))
    written = [tmp_path / "tiny", *(tmp_path / "tiny").rglob("*")]
    assert {path.stat().st_ino for path in [*written, tmp_path]} <= set(synced)


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_one_process_at_a_time_builds_a_bundle(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "tiny"
    holder = (
        "import sys; from pathlib import Path; from vinfer.bundle.directory import build_lock\n"
        "with build_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    # Where the real lock would wait, this one says so.
    wait = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: wait(file, how | fcntl.LOCK_NB))
    command = [sys.executable, "-c", holder, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        waits = []
        with pytest.raises(BlockingIOError), build_lock(target, on_wait=lambda: waits.append(target)):
            pass
        assert waits == [target]
        with build_lock(target.with_name("other")):
            pass
        if end == "leaves":
            process.stdin.close()
        else:
            process.kill()
        process.wait(30)
    with build_lock(target):
        pass


PARITY = ParityReport(
    verdict="passed",
    measured=1_700_000_001,
    versions={"transformers": "5.5.4", "torch": "2.13.0"},
    dtype="bfloat16",
    reference_dtype="float32",
    figures=ParityFigures(
        num_prompts=1,
        num_tokens=64,
        largest_error=0.01,
        mean_error=0.001,
        top1_agreement=0.984375,
        mean_kl=0.002,
        largest_kl=0.02,
        num_wrong_tokens=1,
    ),
    thresholds=ParityThresholds(min_top1_agreement=0.85, max_mean_kl=0.05, tie=1e-5),
)


def test_parity_goes_into_the_manifest_and_changes_nothing_else(directory: Path) -> None:
    before = read_manifest(directory)
    assert before.parity is None
    record_parity(directory, before.key, PARITY)
    after = read_manifest(directory)
    assert after == before.model_copy(update={"parity": PARITY})
    verify_files(directory, after, weights=True)
    assert hash_files(directory) == before.files
    newer = PARITY.model_copy(update={"verdict": "failed"})
    record_parity(directory, before.key, newer)
    assert read_manifest(directory).parity == newer


def test_parity_of_another_bundle_is_not_recorded(directory: Path) -> None:
    with pytest.raises(BundleError, match="was replaced while it was measured"):
        record_parity(directory, "1" * 64, PARITY)
    assert read_manifest(directory).parity is None


def test_a_bundle_from_before_parity_reads_as_unverified(directory: Path) -> None:
    document = json.loads((directory / "manifest.json").read_text())
    del document["parity"]
    (directory / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(directory).parity is None


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
    ],
)
def test_a_config_must_not_state_what_the_bundle_it_serves_is_not(
    tmp_path: Path, stated: dict[str, object], is_refused: bool
) -> None:
    model = ModelConfig.model_validate({"name": "m", "source": str(tmp_path), **stated})
    shapes = plan_programs(prefill_shapes=[(1, 16)], slot_buckets=[1, 4], steps=4, kv_buckets=[64])
    programs = tuple(ProgramSpec(shape=shape, file="", inputs=(), outputs=()) for shape in shapes)
    write_manifest(tmp_path, make_manifest({}).model_copy(update={"programs": programs}))

    def find() -> Path:
        return find_or_build(
            model,
            where="models[0]",
            platform="cpu",
            num_devices=8,
            bundles_dir=tmp_path,
            progress=lambda *_: None,
        ).directory

    if is_refused:
        (field,) = stated
        with pytest.raises(ConfigError, match=rf"models\[0\]\.{field} is .* was built with"):
            find()
    else:
        assert find() == tmp_path

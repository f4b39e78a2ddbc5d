"""The bundle directory: it reads back as written, and anything else is refused with a clear message."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from written_bundle import WEIGHTS, make_manifest

from vinfer.bundle.certificate import ParityFigures, ParityReport, ParityThresholds
from vinfer.bundle.directory import (
    build_lock,
    bundle_key,
    read_manifest,
    record_parity,
    write_manifest,
    writing,
)
from vinfer.bundle.programs import ProgramShape
from vinfer.bundle.verification import hash_files, verify_files
from vinfer.errors import BundleError


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
    """A manifest that survives a power failure must not sit beside empty weights, which are not hashed."""
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
    # Report when the real lock would wait.
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
    with pytest.raises(BundleError, match="was replaced during the measurement"):
        record_parity(directory, "1" * 64, PARITY)
    assert read_manifest(directory).parity is None

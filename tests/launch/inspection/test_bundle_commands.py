"""`vinfer bundle`: what is listed, what is intact, and what is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle.written_bundle import PROGRAM, WEIGHTS, make_manifest

from vinfer.bundle.directory import build_lock, write_manifest
from vinfer.bundle.verification import hash_files
from vinfer.compiler.plan import build_versions
from vinfer.errors import BundleError
from vinfer.launch.inspection.stored_bundles import prune, stored_bundles


def written(directory: Path, *, created: float | None = None, **versions: str) -> Path:
    """Write a small bundle."""
    for name in (PROGRAM, WEIGHTS):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_bytes(b"x" * 1000)
    manifest = make_manifest(hash_files(directory))
    write_manifest(
        directory,
        manifest.model_copy(
            update={
                "versions": {**build_versions(), **versions},
                "created": int(time.time() if created is None else created),
            }
        ),
    )
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache with a bundle of today, one of last month and two that nothing here can serve."""
    bundles = tmp_path / "bundles"
    written(bundles / "new")
    written(bundles / "old", created=time.time() - 31 * 86_400)
    written(bundles / "other-jax", jax="0.0.1")
    damaged = written(bundles / "damaged")
    (damaged / "manifest.json").write_text("{}")
    # A lock, a log, a build that was killed, a directory of the user's, and a link to one.
    (bundles / ".new.lock").touch()
    (bundles / "old.build.log").touch()
    written(bundles / ".new-abc")
    (bundles / "mine").mkdir()
    (bundles / "linked").symlink_to(written(tmp_path / "elsewhere", jax="0.0.1"))
    return tmp_path


def names(found: list[object]) -> set[str]:
    return {bundle.directory.name for bundle in found}  # type: ignore[attr-defined]


def vinfer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", "bundle", *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.processes
def test_bundles_are_listed_with_what_is_wrong(cache: Path) -> None:
    found = {bundle.directory.name: bundle for bundle in stored_bundles(cache / "bundles")}
    assert found.keys() == {"new", "old", "other-jax", "damaged"}
    assert (found["new"].problem, found["old"].problem) == (None, None)
    assert found["other-jax"].problem == f"built with jax 0.0.1; here is {build_versions()['jax']}"
    assert "format_version is None" in (found["damaged"].problem or "")
    assert found["new"].num_bytes > 2000
    assert stored_bundles(cache / "none") == []
    process = vinfer("list", "--cache-dir", str(cache), "--json")
    assert {Path(row["directory"]).name for row in json.loads(process.stdout)} == found.keys()
    process = vinfer("list", "--cache-dir", str(cache))
    assert process.stdout.splitlines()[-1].startswith("4 bundles, ")
    assert process.stdout.count("not for this installation") == 2


@pytest.mark.processes
def test_prune_only_lists_until_it_is_told_to_remove(cache: Path) -> None:
    bundles = cache / "bundles"
    assert names(prune(bundles, older_than_days=None, removes=False)) == {"other-jax", "damaged"}
    assert names(stored_bundles(bundles)) == {"new", "old", "other-jax", "damaged"}
    process = vinfer("prune", "--cache-dir", str(cache), "--yes")
    assert process.stdout.splitlines()[-1].endswith("removed")
    assert names(stored_bundles(bundles)) == {"new", "old"}
    assert names(prune(bundles, older_than_days=30, removes=True)) == {"old"}
    left = {path.name for path in bundles.iterdir() if not path.name.endswith(".lock")}
    assert left == {"new", ".new-abc", "mine", "linked"}
    assert (cache / "elsewhere" / WEIGHTS).is_file()


def test_a_bundle_that_is_being_built_is_left_alone(cache: Path) -> None:
    with build_lock(cache / "bundles" / "damaged"):
        assert names(prune(cache / "bundles", older_than_days=None, removes=True)) == {"other-jax"}
    assert (cache / "bundles" / "damaged").is_dir()


def test_a_file_that_cannot_be_removed_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(BundleError, match=r"cannot be removed \(Permission denied\): make the cache"):
        prune(cache / "bundles", older_than_days=None, removes=True)


@pytest.mark.processes
def test_a_changed_file_is_found(cache: Path) -> None:
    directory = cache / "bundles" / "new"
    assert vinfer("verify", str(directory)).stdout == "2 files are intact\n"
    assert json.loads(vinfer("verify", str(directory), "--json").stdout) == {"intact": True, "num_files": 2}
    (directory / WEIGHTS).write_bytes(b"y")
    process = vinfer("verify", str(directory), "--json")
    assert (process.returncode, process.stdout) == (BundleError.exit_code, "")
    assert f"{WEIGHTS} was changed after the build" in process.stderr


@pytest.mark.processes
def test_what_a_bundle_holds(cache: Path) -> None:
    directory = cache / "bundles" / "new"
    (directory / "code" / "cpu-cpu-0123").mkdir(parents=True)
    found = json.loads(vinfer("inspect", str(directory), "--json").stdout)
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["bytes"] == {"weights": 64, "state": 138}
    assert found["programs"] == ["decode[4,8]"]
    assert (found["machine_code"], found["parity"]) == (["cpu-cpu-0123"], None)
    lines = vinfer("inspect", str(directory)).stdout.splitlines()
    assert len(lines) == len(found)
    assert any(line.split() == ["max_model_len", "64"] for line in lines)
    process = vinfer("inspect", str(cache))
    assert process.returncode == BundleError.exit_code
    assert "is not a bundle: it has no manifest.json" in process.stderr

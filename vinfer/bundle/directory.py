"""A bundle's directory: written under a lock, put in place by a rename, and read back with its manifest.

Any thread or process; `build_lock` keeps two processes from building the same bundle.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pydantic

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.manifest import FORMAT_VERSION, Manifest
from vinfer.errors import BundleError

MANIFEST = "manifest.json"
BUNDLE_CODE = "code"
"""The directory of machine code, which is not part of the manifest."""


def bundle_key(facts: Mapping[str, object]) -> str:
    """Return the sha256 of everything that changes the contents of a bundle."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `directory`, which replaces `directory` unless an exception is raised.

    The caller holds `build_lock`, so any existing siblings belong to builds that were killed.
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
        on_wait: called once if another process holds the lock.
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
    """Write a parity report into the manifest of a bundle; the rest of the manifest does not change.

    Takes the bundle's lock, so do not call it while holding `build_lock`.

    Args:
        key: key of the bundle that was measured.

    Raises:
        BundleError: the directory holds another bundle by now.
        OSError: the bundle cannot be written to.
    """
    with build_lock(directory):
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise BundleError(f"bundle {directory} was replaced during the measurement: measure it again")
        new = directory / f".{MANIFEST}.new"
        new.write_text(_manifest_text(manifest.model_copy(update={"parity": parity})))
        _sync(new)
        new.replace(directory / MANIFEST)
        _sync(directory)


def is_bundle(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        BundleError: the manifest is missing, not JSON, of another format version, or has unknown fields.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}") from None
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

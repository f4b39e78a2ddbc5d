"""The bundles of a cache: what each is, whether this installation can serve it, and their removal.

Reads manifests and sizes of files. Removes only what looks like a bundle, and none that is being written.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vinfer.bundle.directory import BUNDLE_CODE, MANIFEST, build_lock, is_bundle, read_manifest
from vinfer.bundle.manifest import Manifest
from vinfer.compiler.plan import build_versions
from vinfer.errors import BundleError
from vinfer.launch.fit import bundle_parts

_SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredBundle:
    """One bundle of a cache.

    Attributes:
        manifest: None if this vinfer cannot read it.
        problem: why this installation cannot serve it; None if it can.
        created: seconds since 1970; for a manifest that cannot be read, the time of its file.
    """

    directory: Path
    manifest: Manifest | None
    problem: str | None
    num_bytes: int
    created: int


class _BusyError(Exception):
    """Another process holds the lock of the bundle."""


def stored_bundles(bundles_dir: Path) -> list[StoredBundle]:
    """Return the bundles of a cache, newest first; files are not hashed."""
    found = [_stored(directory) for directory in _directories(bundles_dir)]
    return sorted(found, key=lambda bundle: -bundle.created)


def prune(bundles_dir: Path, *, older_than_days: int | None, removes: bool) -> list[StoredBundle]:
    """Return the bundles that this installation cannot serve, or that were built long ago.

    Args:
        older_than_days: also return the others if they are older.
        removes: remove them too, but for those that another process is writing or has replaced.

    Raises:
        BundleError: a bundle cannot be removed.
    """
    oldest = None if older_than_days is None else time.time() - older_than_days * _SECONDS_PER_DAY
    chosen = [
        bundle
        for bundle in stored_bundles(bundles_dir)
        if bundle.problem is not None or (oldest is not None and bundle.created < oldest)
    ]
    return [bundle for bundle in chosen if not removes or _remove(bundle)]


def as_json(bundle: StoredBundle) -> dict[str, Any]:
    """Return a bundle of the cache as plain data."""
    model = None if bundle.manifest is None else bundle.manifest.model
    return {
        "directory": str(bundle.directory),
        "source": None if model is None else model.source,
        "architecture": None if model is None else model.architecture,
        "bytes": bundle.num_bytes,
        "created": bundle.created,
        "problem": bundle.problem,
    }


def facts(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what a bundle holds, as plain data; sizes are bytes of one device, without the KV cache."""
    parity = manifest.parity
    return {
        "directory": str(directory),
        "key": manifest.key,
        "created": manifest.created,
        "source": manifest.model.source,
        "architecture": manifest.model.architecture,
        "task": manifest.model.task,
        "num_parameters": manifest.model.num_parameters,
        "vocab_size": manifest.model.vocab_size,
        "dtype": manifest.dtype,
        "platform": manifest.platform,
        "mesh": manifest.mesh,
        "num_slots": manifest.num_slots,
        "max_model_len": manifest.max_model_len,
        "page_size": manifest.page_size,
        "page_bytes": [group.page_bytes for group in manifest.page_plan.groups],
        "bytes": dict(bundle_parts(manifest).by_name),
        "directory_bytes": _size_of(directory),
        "programs": [program.shape.name for program in manifest.programs],
        "embeddings": None if manifest.embeddings is None else manifest.embeddings.pooling,
        "is_deterministic": manifest.is_deterministic,
        "versions": manifest.versions,
        "machine_code": sorted(path.name for path in (directory / BUNDLE_CODE).glob("*") if path.is_dir()),
        "parity": None if parity is None else parity.verdict,
    }


def _directories(bundles_dir: Path) -> Iterator[Path]:
    if bundles_dir.is_dir():
        # A dot begins what is being written, and locks. What is linked belongs to somebody else.
        yield from (
            path
            for path in bundles_dir.iterdir()
            if not path.name.startswith(".") and not path.is_symlink() and is_bundle(path)
        )


def _stored(directory: Path) -> StoredBundle:
    try:
        manifest: Manifest | None = read_manifest(directory)
        problem = _other_version(manifest)
    except BundleError as error:
        manifest, problem = None, error.message
    return StoredBundle(
        directory=directory,
        manifest=manifest,
        problem=problem,
        num_bytes=_size_of(directory),
        created=int((directory / MANIFEST).stat().st_mtime) if manifest is None else manifest.created,
    )


def _other_version(manifest: Manifest | None) -> str | None:
    versions = build_versions()
    for name in ("jax", "jaxlib"):
        built = None if manifest is None else manifest.versions.get(name)
        if built != versions[name]:
            return f"built with {name} {built}; here is {versions[name]}"
    return None


def _size_of(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _remove(bundle: StoredBundle) -> bool:
    """Remove a bundle and its log; return false if another process builds, or has built, it anew."""
    directory = bundle.directory

    def give_up() -> None:
        raise _BusyError

    try:
        with build_lock(directory, give_up):
            if not is_bundle(directory) or _stored(directory) != bundle:
                return False
            # First, so that what remains after a crash is no bundle.
            (directory / MANIFEST).unlink()
            shutil.rmtree(directory)
            (directory.parent / f"{directory.name}.build.log").unlink(missing_ok=True)
    except _BusyError:
        return False
    except OSError as error:
        raise BundleError(
            f"bundle {directory} cannot be removed ({error.strerror}): make the cache writable"
        ) from None
    return True

"""Checks that a bundle is unchanged since it was written, and that it fits this process.

Only reads files; the manifest says what each must contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vinfer.bundle.directory import MANIFEST
from vinfer.bundle.manifest import Manifest, mesh_words
from vinfer.errors import BundleError

WEIGHTS = "weights/"
NUM_HASHING_THREADS = 2


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file under `directory`, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def verify_files(directory: Path, manifest: Manifest, *, weights: bool) -> None:
    """Check that every file of the bundle exists and is unchanged.

    Args:
        weights: also hash the weights (seconds per GB). Otherwise only their presence is checked here;
            `WeightHashing` does the rest while they are loaded.

    Raises:
        BundleError: a file is missing or changed.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise BundleError(f"bundle {directory} lacks {name}: run vinfer precompile again")
        if name.startswith(WEIGHTS) and not weights:
            continue
        if sha256_of(path) != expected:
            raise _changed(directory, name)


class WeightHashing:
    """Hashes the weights of a bundle on threads of its own, while something else loads them.

    Both read each file about once: what one of them reads, the other finds in the page cache.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Begin."""
        self._directory = directory
        self._pool = ThreadPoolExecutor(NUM_HASHING_THREADS, thread_name_prefix="hash")
        self._found = {
            name: (expected, self._pool.submit(sha256_of, directory / name))
            for name, expected in manifest.files.items()
            if name.startswith(WEIGHTS)
        }

    def check(self) -> None:
        """Wait for the end.

        Raises:
            BundleError: names the file that has changed, or cannot be read.
        """
        for name, (expected, found) in self._found.items():
            try:
                is_same = found.result() == expected
            except OSError as error:
                raise BundleError(
                    f"bundle {self._directory}: {name} cannot be read ({error.strerror}): "
                    "run vinfer precompile again"
                ) from None
            if not is_same:
                raise _changed(self._directory, name)

    def close(self) -> None:
        """Stop what has not begun; nothing is waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _changed(directory: Path, name: str) -> BundleError:
    return BundleError(f"bundle {directory}: {name} was changed after the build: run vinfer precompile again")


def check_fits(
    directory: Path, manifest: Manifest, *, platform: str, num_devices: int, versions: Mapping[str, str]
) -> None:
    """Check that a bundle was built for this process.

    Args:
        versions: package versions in this process; jax and jaxlib must equal the bundle's.

    Raises:
        BundleError: the bundle does not fit; the message names the field, both values and the next move.
    """
    facts = [
        ("platform", manifest.platform, platform),
        *((f"versions.{name}", manifest.versions.get(name), version) for name, version in versions.items()),
    ]
    for field, built_for, here in facts:
        if built_for != here:
            raise BundleError(
                f"bundle {directory}: {field} is {built_for}; this process has {here}: "
                "run vinfer precompile on this installation"
            )
    if manifest.num_devices > num_devices:
        raise BundleError(
            f"bundle {directory}: its mesh {mesh_words(manifest.mesh)} needs {manifest.num_devices} "
            f"devices; this machine has {num_devices}: run vinfer precompile with a smaller mesh"
        )


def check_spans(directory: Path, manifest: Manifest, num_devices: int) -> None:
    """Check that a bundle uses all devices of a group: a member without any would have nothing to do.

    Raises:
        BundleError: it does not.
    """
    if manifest.num_devices != num_devices:
        raise BundleError(
            f"bundle {directory}: its mesh {mesh_words(manifest.mesh)} takes {manifest.num_devices} devices; "
            f"the group has {num_devices}: run vinfer precompile with a mesh over all of them"
        )

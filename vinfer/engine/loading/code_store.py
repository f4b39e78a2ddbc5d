"""Machine code of a bundle's programs on disk: one file per program, below a directory per kind of machine.

    <root>/<platform>-<device kind>-<hash>/<pages>/<program>.code

The hash covers everything that compiled code depends on besides the program: versions, devices, CPU features
and compiler flags. A file is one line of JSON and then the bytes as XLA serializes them. Machine code is run,
so only files of this process's user or of root are read, and none that everybody may write.

Any thread. Knows files and trust; neither JAX nor what the bytes mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SUFFIX = ".code"
_FACTS = "facts.json"
_WRITABLE_BY_ALL = 0o002
_MAX_HEADER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class MachineCode:
    """One program's machine code.

    Attributes:
        executable: bytes of XLA's executable.
        kept_inputs: positions of the inputs that the compiler kept, ascending.
        temporary_bytes: memory that the program needs besides its arguments, on one device.
    """

    executable: bytes
    kept_inputs: tuple[int, ...]
    temporary_bytes: int


class CodeStore:
    """The machine code of one bundle for one kind of machine and one number of pages.

    Args:
        roots: directories to look in, the first one first. Code is written to the first one that allows it.
        facts: what machine code depends on, by name; code with other facts is not found.
        num_pages: pages of the KV cache, by group, that the programs are compiled for.
    """

    def __init__(self, roots: Sequence[Path], facts: Mapping[str, str], num_pages: Sequence[int]) -> None:
        self._facts = dict(facts)
        self._kind = kind_directory(facts)
        self._pages = _pages_directory(num_pages)
        self._roots = tuple(roots)

    def read(self, program: str) -> MachineCode | None:
        """Return the code of a program, or None, with the reason in the log if the file cannot be used."""
        for root in self._roots:
            path = root / self._kind / self._pages / f"{program}{_SUFFIX}"
            if not path.is_file():
                continue
            try:
                check_trust(path, path.parent, path.parent.parent, root)
                return _decode(path.read_bytes())
            except (OSError, ValueError) as error:
                logger.warning("%s is not used: %s; compiling the program", path, error)
        return None

    def write(self, program: str, code: MachineCode) -> bool:
        """Store the code of a program; return whether one of the directories allowed it."""
        for root in self._roots:
            directory = root / self._kind / self._pages
            try:
                directory.mkdir(parents=True, exist_ok=True, mode=0o755)
                check_trust(directory, directory.parent, root)
                if not (facts := directory.parent / _FACTS).exists():
                    _write_file(facts, json.dumps(self._facts, indent=1).encode())
                _write_file(directory / f"{program}{_SUFFIX}", _encode(code))
            except (OSError, ValueError) as error:
                logger.debug("no machine code is stored in %s: %s", root, error)
                continue
            return True
        return False

    def page_counts(self) -> list[tuple[int, ...]]:
        """Return the numbers of pages for which code for this kind of machine is there."""
        found = {
            counts
            for root in self._roots
            for path in (root / self._kind).glob("*")
            if path.is_dir() and (counts := _page_counts(path)) is not None
        }
        return sorted(found)

    def why_none_fits(self) -> str | None:
        """Return how stored code for this platform differs from what this machine needs; None without any."""
        platform = f"{self._facts['platform']}-"
        for root in self._roots:
            for path in sorted(root.glob(f"{platform}*/{_FACTS}")):
                if path.parent.name == self._kind:
                    continue
                with contextlib.suppress(OSError, ValueError):
                    stored = json.loads(path.read_bytes())
                    return ", ".join(
                        f"{name} {stored.get(name)} (here {value})"
                        for name, value in self._facts.items()
                        if stored.get(name) != value
                    )
        return None


def stored_temporary_bytes(
    roots: Sequence[Path], facts: Mapping[str, Collection[str]]
) -> dict[tuple[int, ...], dict[str, int]]:
    """Return what the headers of stored code say, without a device: memory besides arguments, in bytes.

    Args:
        facts: the values, in lower case, of some facts of a `CodeStore`; code with others is left out.

    Returns:
        By pages of each group, and then by program. Files that cannot be read are left out.
    """
    found: dict[tuple[int, ...], dict[str, int]] = {}
    for path in (path for root in roots for path in sorted(root.glob(f"*/{_FACTS}"))):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stored = json.loads(path.read_bytes())
            if any(str(stored.get(name)).lower() not in wanted for name, wanted in facts.items()):
                continue
            for code in sorted(path.parent.glob(f"*/*{_SUFFIX}")):
                num_pages = _page_counts(code.parent)
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError), code.open("rb") as file:
                    size = int(json.loads(file.readline(_MAX_HEADER_BYTES))["temporary_bytes"])
                    if num_pages is not None:
                        found.setdefault(num_pages, {})[code.name.removesuffix(_SUFFIX)] = size
    return found


def kind_directory(facts: Mapping[str, str]) -> str:
    """Return the name of the directory for code with these facts: `<platform>-<device kind>-<hash>`."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:12]
    kind = facts["device_kind"].replace(" ", "_").replace("/", "_").lower()
    return f"{facts['platform']}-{kind}-{digest}"


def _pages_directory(num_pages: Sequence[int]) -> str:
    return "-".join(str(count) for count in num_pages) or "0"


def _page_counts(directory: Path) -> tuple[int, ...] | None:
    """Return the pages, by group, that a directory's code is for; None if its name is another one."""
    if not directory.name.replace("-", "").isdigit():
        return None
    return tuple(int(count) for count in directory.name.split("-"))


def check_trust(*paths: Path) -> None:
    """Raise PermissionError if another user may have written one of the paths."""
    for path in paths:
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to user {status.st_uid}: make it this process's or root's")
        if status.st_mode & _WRITABLE_BY_ALL:
            raise PermissionError(f"everybody may write {path}: run chmod o-w on it")


def _encode(code: MachineCode) -> bytes:
    header = {
        "sha256": hashlib.sha256(code.executable).hexdigest(),
        "kept_inputs": code.kept_inputs,
        "temporary_bytes": code.temporary_bytes,
    }
    return json.dumps(header).encode() + b"\n" + code.executable


def _decode(content: bytes) -> MachineCode:
    line, _, executable = content.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(line)
        code = MachineCode(executable, tuple(header["kept_inputs"]), header["temporary_bytes"])
        is_whole = header["sha256"] == hashlib.sha256(executable).hexdigest()
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError("it is damaged")
    return code


def _write_file(path: Path, content: bytes) -> None:
    """Replace a file at once, so that another process sees all of it or nothing."""
    descriptor, scratch = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)
        Path(scratch).replace(path)
    except OSError:
        Path(scratch).unlink(missing_ok=True)
        raise

"""A hash of the code that decides what is in a bundle, without its comments and docstrings.

Any thread. Every start of `vinfer serve` needs it, and parsing takes longer than the rest of the plan: a hash
is kept on disk under the hash of the bytes that it was made of. Knows nothing of plans or bundles.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

_DECIDING = ("bundle", "checkpoint", "compiler", "cpu_kernel")
_STORED = ".code-"


@functools.cache
def code_hash(cache: Path | None = None) -> str:
    """Return the hash of the code of this process.

    Args:
        cache: a directory to keep hashes in; one that cannot be written to is no error.
    """
    return hash_package(Path(__file__).parents[1], cache)


def hash_package(package: Path, cache: Path | None = None) -> str:
    """Hash the deciding files of a package by name and syntax tree; see `code_hash`."""
    files = [
        package / "image_processing.py",
        *(file for room in _DECIDING for file in sorted((package / room).rglob("*.py"))),
    ]
    sources = {file.relative_to(package).as_posix(): file.read_bytes() for file in files}
    if cache is None:
        return _hash_trees(sources)
    # The name of the file is the hash of all that the hash in it depends on, this module included.
    digest = _hash({name: hashlib.sha256(raw).digest() for name, raw in sources.items()})
    stored = cache / f"{_STORED}{digest}"
    try:
        kept = stored.read_text()
    except (OSError, ValueError):
        kept = ""
    if re.fullmatch("[0-9a-f]{64}", kept):
        return kept
    found = _hash_trees(sources)
    _store(stored, found)
    return found


def _store(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as new:
            new.write(text)
        Path(new.name).replace(path)
    except OSError:
        # A read-only cache costs the next start what it cost this one.
        return


def _hash_trees(sources: Mapping[str, bytes]) -> str:
    return _hash({name: _words(ast.parse(raw)).encode() for name, raw in sources.items()})


def _hash(named: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in named.items():
        digest.update(name.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _words(node: object) -> str:
    """Spell a tree out; unlike `ast.dump`, every Python that vinfer runs on spells it alike."""
    if isinstance(node, list):
        return f"[{','.join(_words(item) for item in node if not _is_text_alone(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Fields that newer versions add are empty for code that older ones can read.
    fields = ",".join(
        f"{name}={_words(value)}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    )
    return f"{type(node).__name__}({fields})"


def _is_text_alone(node: object) -> bool:
    """Whether a statement is a docstring, or a string below a field or a constant: it does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )

"""The file of API keys: one per line, with what is known about each.

    # a comment
    3f1c9d...
    9a77b2... name=batch priority=0..100

Reads the file when it is told to. Knows nothing of requests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

from vinfer.config.private_file import read_private_file
from vinfer.errors import ConfigError

MAX_PRIORITY = 2**31 - 1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PRIORITIES = re.compile(r"(-?[0-9]{1,10})\.\.(-?[0-9]{1,10})")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key.

    Attributes:
        digest: sha256 of the key; what identifies its owner inside the server.
        name: what the log and the metrics call it; never part of the key.
        priorities: lowest and highest `priority` that its requests may send; None if the file does not say.
    """

    digest: bytes
    name: str
    priorities: tuple[int, int] | None = None


def digest_of(key: bytes) -> bytes:
    """Return the sha256 of a key."""
    return hashlib.sha256(key).digest()


def read_api_keys(path: Path | None) -> tuple[ApiKey, ...]:
    """Read the keys of a file; none if there is no file.

    Raises:
        ConfigError: the file cannot be read, everyone may read it, it contains no key, or a line is wrong.
    """
    if path is None:
        return ()
    setting = f"server.api_keys_file {path}"
    lines = read_private_file(path, "server.api_keys_file", "one key per line").splitlines()
    keys = [
        _parse(line.split(), f"{setting} line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not keys:
        raise ConfigError(f"{setting} contains no key: write one per line, or leave the setting out")
    for what in ("digest", "name"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            same = "a key" if what == "digest" else "a name"
            raise ConfigError(f"{setting} has {same} twice: remove one of the lines")
    return tuple(keys)


def _parse(words: list[str], where: str) -> ApiKey:
    digest = digest_of(words[0].encode())
    name, priorities = digest.hex()[:8], None
    for word in words[1:]:
        option, _, value = word.partition("=")
        if option == "name" and _NAME.fullmatch(value):
            name = value
        elif option == "priority" and (match := _PRIORITIES.fullmatch(value)):
            priorities = (int(match[1]), int(match[2]))
        else:
            # Without the word, which may be part of a key.
            raise ConfigError(
                f"{where}: after the key comes something other than name=NAME or priority=LOWEST..HIGHEST: "
                "correct it; a key has no spaces"
            )
    if priorities is not None and not -MAX_PRIORITY <= priorities[0] <= priorities[1] <= MAX_PRIORITY:
        raise ConfigError(
            f"{where}: priority is {priorities[0]}..{priorities[1]}: begin with the lowest value"
        )
    return ApiKey(digest=digest, name=name, priorities=priorities)

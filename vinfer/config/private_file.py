"""Reads files with secrets, which nobody else may read."""

from __future__ import annotations

import stat
from pathlib import Path

from vinfer.errors import ConfigError


def read_private_file(path: Path, key: str, content: str) -> str:
    """Return the text of a file with secrets.

    Args:
        key: names the file in the config, such as `server.api_keys_file`.
        content: what the file should contain, for the error.

    Raises:
        ConfigError: the file cannot be read, or everyone may read it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key} {path} cannot be read ({type(error).__name__}): name a UTF-8 text file with {content}"
        ) from None
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"{key} {path} has mode {stat.S_IMODE(mode):04o}, so everyone on this machine may use it: "
            "run chmod o-rwx on it"
        )
    return text

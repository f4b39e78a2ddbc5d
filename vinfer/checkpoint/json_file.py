"""Reads the JSON files of a checkpoint, which are untrusted input.

Runs in the build half, on any thread. Knows nothing of what the files mean.
"""

from __future__ import annotations

import json
from pathlib import Path

from vinfer.errors import CheckpointError

MAX_CONFIG_BYTES = 16 * 2**20
MAX_TOKENIZER_BYTES = 256 * 2**20


def read_text(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """Read a UTF-8 text file of at most `max_bytes`.

    Raises:
        CheckpointError: the file is missing, unreadable, too large or not UTF-8.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise CheckpointError(
                f"{path} has {size_bytes} bytes; limit {max_bytes}: check that this is a checkpoint"
            )
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror}: download the checkpoint again or check `source`"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: download the checkpoint again") from error


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Read a JSON file whose top level is an object.

    Raises:
        CheckpointError: see `read_text`; also if the text is not a JSON object.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            # Half of a surrogate pair is legal JSON but not text, so the bundle could not hold it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, not a JSON object: download it again")
    return value


def read_optional_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Read a JSON object, or return an empty one if the file does not exist."""
    return read_json_object(path, max_bytes=max_bytes) if path.is_file() else {}

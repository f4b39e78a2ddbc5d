"""Checks that every key of a config has been read, or cannot change the logits.

Runs in the build half, on any thread. Knows no particular family.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.known_keys import HARMLESS_KEYS, OFF_KEYS
from vinfer.checkpoint.quantization import is_mxfp4, read_fp8_scheme


def refuse_unread_keys(keys: ConfigKeys, harmless: frozenset[str] = frozenset()) -> None:
    """Check the keys of a config.json, or of a config inside one, after its family has read it.

    Args:
        harmless: keys of the family that cannot change the logits of an inference pass.

    Raises:
        CheckpointError: a key that nobody has read, or a switch with an unsupported value.
    """
    if not is_mxfp4(keys):
        read_fp8_scheme(keys)
    for key, value in OFF_KEYS.items():
        if not keys.is_read(key) and keys.has(key) and keys.values[key] != value:
            raise keys.refusal(key, f"only {value!r} is supported")
    keys.refuse_unread(
        "vinfer does not know this key and cannot tell whether it changes the logits: remove it from the "
        "file if it does not",
        harmless=HARMLESS_KEYS | harmless,
    )
